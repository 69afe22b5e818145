"""The hooks judge each test once, and save and compare its baseline."""

from __future__ import annotations

import json

import pytest

from tests.support.patience import patience
from tests.support.suites import PRELUDE, outcomes

pytest_plugins = ["pytester"]


def test_two_markers_on_one_function_are_refused(suite: pytest.Pytester) -> None:
    """Pytest would read one of them and ignore the other's limits; a marker of the class may be beside one."""
    result = outcomes(
        suite,
        """
@pytest.mark.swtrace(max_stall_ratio=0.0)
@pytest.mark.swtrace(max_stall_ratio=1.0)
def test_stacked(swtrace): raise AssertionError("it ran")

@pytest.mark.swtrace(max_stall_ratio=0.0)
class TestThem:
    @pytest.mark.swtrace(max_stall_ratio=1.0)
    def test_own(self, swtrace): run(swtrace)
""",
    )
    result.assert_outcomes(errors=1, passed=1)
    result.stdout.fnmatch_lines(["test_*.py:*: two @pytest.mark.swtrace on one function*put all arguments into one"])
    assert "it ran" not in result.stdout.str()


def test_a_marker_on_one_case_of_a_parametrized_test_is_that_case_s_own(suite: pytest.Pytester) -> None:
    """`pytest.param(..., marks=...)` records and judges that case, and leaves the others as they are."""
    result = outcomes(
        suite,
        """
@pytest.mark.parametrize("wanted", [
    pytest.param("1", marks=pytest.mark.swtrace(max_stall_ratio=0.01)),
    pytest.param(None),
])
def test_it(wanted, request):
    assert os.environ.get("SWTRACE") == wanted
    assert ("swtrace" in request.fixturenames) == (wanted is not None)
    if wanted:
        run(request.getfixturevalue("swtrace"))
""",
    )
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*stall ratio 5.0 % is above 1.0 %*"])


def test_a_test_that_is_run_again_counts_once(suite: pytest.Pytester) -> None:
    """Whatever runs a test several times, it has one baseline to miss, and is named once."""
    suite.makeconftest(
        """
from _pytest.runner import runtestprotocol

def pytest_runtest_protocol(item, nextitem):
    for _ in range(3):
        reports = runtestprotocol(item, nextitem=nextitem, log=False)
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    return True
"""
    )
    result = outcomes(suite, "\n@pytest.mark.swtrace(baseline=True)\ndef test_it(request):\n"
                      "    run(request.getfixturevalue('swtrace'))\n")  # fmt: skip
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*1 of 1 checked test has no baseline yet*"])
    assert [line for line in result.outlines if line.strip().endswith("::test_it")] == [
        "  test_a_test_that_is_run_again_counts_once.py::test_it"
    ]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("swtrace_ring_records=abc", "ini option swtrace_ring_records: must be a power of two, not 'abc'"),
        ("swtrace_ring_records=1000", "ini option swtrace_ring_records: must be a power of two, not '1000'"),
        ("swtrace_tolerance=nan", "ini option swtrace_tolerance: must be a number of at least 0, not 'nan'"),
        ("swtrace_tolerance=5%", "ini option swtrace_tolerance: must be a number of at least 0, not '5%'"),
    ],
)
def test_ini_options_that_cannot_be_used_are_one_line(suite: pytest.Pytester, option: str, message: str) -> None:
    """An invalid ini option is an error that says what it must be, without a traceback."""
    result = outcomes(
        suite, "\n@pytest.mark.swtrace(max_stall_ratio=1.0)\ndef test_it(swtrace): run(swtrace)\n", "-o", option
    )
    assert [line.removeprefix("swtrace: ") for line in result.outlines].count(message) == 1
    assert "Traceback" not in result.stdout.str()


def test_a_failing_test_reports_its_own_reason(suite: pytest.Pytester) -> None:
    """If a test fails, its marker's limits are not checked on top."""
    result = outcomes(suite, "\n@pytest.mark.swtrace(max_stall_ratio=0.0)\ndef test_it(): assert 1 == 2\n")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*assert 1 == 2*"])
    assert "no series" not in result.stdout.str()


def test_baselines_are_saved_compared_and_missed(suite: pytest.Pytester) -> None:
    """A saved baseline lets the same run pass and a worse one fail; a test without one is named and passes."""
    code = """
@pytest.mark.swtrace(baseline=True)
def test_it(swtrace): run(swtrace)
"""
    missing = outcomes(suite, code)
    missing.assert_outcomes(passed=1)
    missing.stdout.fnmatch_lines(["*1 of 1 checked test has no baseline yet*", "*::test_it"])
    saved = outcomes(suite, code, "--swtrace-save-baseline")
    saved.assert_outcomes(passed=1)
    saved.stdout.fnmatch_lines(["*baselines of 1 test saved in*swtrace-baseline.json"])
    outcomes(suite, code).assert_outcomes(passed=1)
    path = suite.path / "swtrace-baseline.json"
    document = json.loads(path.read_text())
    (test,) = document["tests"].values()
    assert test["self_attn.o_proj@0/rank 1"]["stall_ratio"] == pytest.approx(0.05)
    test["self_attn.o_proj@0/rank 1"]["stall_ratio"] = 0.01
    path.write_text(json.dumps(document))
    worse = outcomes(suite, code)
    worse.assert_outcomes(failed=1)
    worse.stdout.fnmatch_lines(["*stall ratio 5.0 % is above 1.6 % (baseline 1.0 %, tolerance 10.0 %)*"])
    outcomes(suite, code, "-o", "swtrace_tolerance=4.0").assert_outcomes(passed=1)
    path.write_text("[]")
    outcomes(suite, code).stdout.fnmatch_lines(["*is not a baseline file of swtrace*"])


def test_under_xdist_workers_measure_and_the_controller_saves(suite: pytest.Pytester) -> None:
    """With two workers each test is checked where it ran, and one file holds all baselines."""
    pytest.importorskip("xdist")
    suite.makepyfile(
        PRELUDE
        + """
@pytest.mark.swtrace(baseline=True, max_stall_ratio=0.06)
@pytest.mark.parametrize("number", range(4))
def test_it(swtrace, number): run(swtrace)
"""
    )
    saved = suite.runpytest_subprocess("-n", "2", "--swtrace-save-baseline", timeout=patience())
    saved.assert_outcomes(passed=4)
    saved.stdout.fnmatch_lines(["*baselines of 4 tests saved*"])
    assert len(json.loads((suite.path / "swtrace-baseline.json").read_text())["tests"]) == 4
