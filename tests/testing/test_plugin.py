"""The fixture, the marker and the baselines, as a user's test suite sees them."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import opentelemetry.sdk.trace.export.in_memory_span_exporter
import pytest

import swtrace.daemon.collector
import swtrace.testing.limits
from tests.support import recorded_run
from tests.support.patience import patience

LOADED_ONCE = (recorded_run, opentelemetry, swtrace)
"""pytester forgets what an inner run imports, and numpy cannot be loaded twice: so it is loaded out here."""

pytest_plugins = ["pytester"]

PRELUDE = """
import os, pytest
from tests.support.recorded_run import RecordedRun

def run(swtrace, steps=10, run_id="run"):
    made = RecordedRun(swtrace.directory, run_id=run_id)
    made.write(steps)
    made.close()
"""


@pytest.fixture
def suite(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """Return a suite whose tests can write rings: 0.3 ms of stall in a step of 6 ms, at position 2."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.delenv("SWTRACE", raising=False)
    return pytester


def outcomes(suite: pytest.Pytester, code: str, *arguments: str) -> pytest.RunResult:
    """Run a suite of one file in this process."""
    suite.makepyfile(PRELUDE + code)
    return suite.runpytest_inprocess("-p", "no:randomly", *arguments)


def test_a_marker_whose_limits_are_met_passes(suite: pytest.Pytester) -> None:
    """A test within its limits passes, with or without asking for the fixture, on a function or a class."""
    result = outcomes(
        suite,
        """
@pytest.mark.swtrace(min_efficiency=0.5, max_stall_ratio=0.06, min_on_time_rate=0.5, max_stall_seconds=0.0004)
def test_with(swtrace): run(swtrace)

@pytest.mark.swtrace(max_stall_ratio=0.06, series="self_attn.o_proj", warmup=3, steps=range(2, 9), phase="decode")
class TestThem:
    def test_without(self, request): run(request.getfixturevalue("swtrace"))
""",
    )
    result.assert_outcomes(passed=2)


LIMITS = {
    "max_stall_ratio=0.01": [
        "swtrace: stall ratio 5.0 % is above 1.0 % on rank 1 of self_attn.o_proj",
        "*layers that stall most*",
        "* 1 *   2 *0.30 ms*100.0 %*",
    ],
    "max_stall_seconds=0.0001": ["*stall per step 0.30 ms is above 0.10 ms*"],
    "min_on_time_rate=0.99": ["*on-time rate * is below 99.0 %*"],
    "min_efficiency=0.99": ["*efficiency * is below 99.0 %*"],
    "min_steps=50": ["*only 10 steps finished, fewer than min_steps=50"],
    "max_stall_ratio=0.0001": ["*stall ratio 5.00 % is above 0.01 %*"],
    "max_stall_ratio=0.04999": ["*stall ratio 5.000 % is above 4.999 %*"],
    "series='mlp'": ["*no finished step matches series='mlp'; recorded: self_attn.o_proj*"],
    "min_efficiency=0.5, rank=0, layer=0": [
        "*min_efficiency cannot be checked: no recorded step matching rank=0, layer=0 *"
    ],
}

REFUSED = {
    "min_eficiency=0.9": "has no argument 'min_eficiency': did you mean min_efficiency?",
    "speed=1": "has no argument 'speed': must be one of: baseline, layer, max_stall_ratio, *warmup",
    "phase='decoding'": "phase='decoding': must be one of: *decode*",
    "'o_proj'": "@pytest.mark.swtrace('o_proj'): arguments must be named, such as max_stall_ratio=0.05",
    "tolerance=0.5": "@pytest.mark.swtrace: tolerance has no effect without baseline=True",
    "max_stall_ratio=float('nan')": "@pytest.mark.swtrace: max_stall_ratio=nan: must be a ratio from 0 to 1",
    "max_stall_ratio='5%'": "@pytest.mark.swtrace: max_stall_ratio='5%': must be a ratio from 0 to 1",
    "max_stall_ratio=None": "@pytest.mark.swtrace: max_stall_ratio=None: must be a ratio from 0 to 1",
    "min_efficiency=90": "@pytest.mark.swtrace: min_efficiency=90: must be a ratio from 0 to 1",
    "min_on_time_rate=True": "@pytest.mark.swtrace: min_on_time_rate=True: must be a ratio from 0 to 1",
    "max_stall_seconds=float('inf')": "@pytest.mark.swtrace: max_stall_seconds=inf: must be a number of seconds from 0",
    "min_steps=0": "@pytest.mark.swtrace: min_steps=0: must be a number of steps from 1",
    "warmup='3'": "@pytest.mark.swtrace: warmup='3': must be a number of steps from 0",
    "rank='1'": "@pytest.mark.swtrace: rank='1': must be a rank's number",
    "layer=-1": "@pytest.mark.swtrace: layer=-1: must be a layer's number",
    "steps=(1, 4)": "@pytest.mark.swtrace: steps=(1, 4): must be a range of step numbers, or a slice that*",
    "steps=slice(-5, None)": "steps=slice(-5, None, None): must be a range of step numbers, or a slice that*",
    "steps=slice(0, 9, 0)": "steps=slice(0, 9, 0): must be a range of step numbers, or a slice that*",
    "baseline=True, tolerance=float('nan')": "@pytest.mark.swtrace: tolerance=nan: must be a number from 0*",
}
"""Invalid markers and their errors."""


def test_a_broken_limit_fails_with_words(suite: pytest.Pytester) -> None:
    """A broken limit is a failure that names value, limit, rank, layer and the marker's line, without a traceback."""
    code = "".join(
        f"\n@pytest.mark.swtrace({limit})\ndef test_{number}(swtrace): run(swtrace)\n"
        for number, limit in enumerate(LIMITS)
    )
    result = outcomes(suite, code)
    result.assert_outcomes(failed=len(LIMITS))
    result.stdout.fnmatch_lines([message for messages in LIMITS.values() for message in messages])
    (file,) = suite.path.glob("test_*.py")
    lines = file.read_text().splitlines()
    for limit in LIMITS:
        line = lines.index(f"@pytest.mark.swtrace({limit})") + 1
        assert any(each.startswith(f"{file.name}:{line}: @pytest.mark.swtrace(") for each in result.outlines)
    assert "Traceback" not in result.stdout.str()
    assert "limits.py" not in result.stdout.str()


def test_a_failure_begins_with_what_is_worst_and_how_many_more(suite: pytest.Pytester) -> None:
    """The first line, of which pytest's summary shows the start, names the worst rank and counts the other limits."""
    result = outcomes(
        suite,
        """
@pytest.mark.swtrace(max_stall_ratio=0.01, max_stall_seconds=0.0001)
def test_it(swtrace): run(swtrace)
""",
    )
    result.stdout.fnmatch_lines(
        ["swtrace: stall ratio 5.0 % is above 1.0 % on rank 1 of self_attn.o_proj; 1 more broken limit below"]
    )


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


def test_a_failed_assertion_shows_what_was_recorded(suite: pytest.Pytester) -> None:
    """Beside a value of the fixture stand the series, its steps and its stall ratio instead of an address."""
    result = outcomes(suite, "\ndef test_it(swtrace):\n    run(swtrace)\n    assert swtrace.stall_ratio() < 0.01\n")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["*where * = <swtrace fixture; self_attn.o_proj: 10 steps, stall ratio 5.0 %>.stall_ratio"]
    )


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ("seris='mlp'", "SettingsError: no selection by 'seris': did you mean series?"),
        ("warmup=-1", "SettingsError: warmup=-1: must be a number of steps from 0"),
        ("layer=99", "EmptySelectionError: no finished step matches layer=99; recorded: self_attn.o_proj *"),
    ],
)
def test_an_error_of_the_fixture_points_at_the_line_of_the_test(
    suite: pytest.Pytester, selection: str, message: str
) -> None:
    """The traceback of a wrong selection ends in the test, not within swtrace."""
    result = outcomes(suite, f"\ndef test_it(swtrace):\n    run(swtrace)\n    swtrace.stall_ratio({selection})\n")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([f"E * swtrace.errors.{message}", "test_*.py:*: *Error"])
    assert "session.py" not in result.stdout.str()


def test_a_daemon_that_does_not_answer_is_one_line(suite: pytest.Pytester) -> None:
    """`read_metrics` names the address and the reason, without tracebacks of swtrace and urllib."""
    code = "\nfrom swtrace.testing import read_metrics\n\ndef test_it(): read_metrics('http://127.0.0.1:1')\n"
    result = outcomes(suite, code)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E *MetricsError: http://127.0.0.1:1: *refused", "test_*.py:*: MetricsError"])
    assert "urllib" not in result.stdout.str()


def test_a_failure_says_what_to_do(suite: pytest.Pytester) -> None:
    """Below the sentences of the verdict stands the ledger's advice."""
    code = """
from tests.support.simulated_rings import write

@pytest.mark.swtrace(max_stall_ratio=0.0001)
def test_straggler(swtrace):
    with write(swtrace.directory, "straggler"): pass
"""
    result = outcomes(suite, code)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["- Rank 3 is the straggler: *", "  Check that rank's host: *"])


def test_a_marker_that_cannot_be_meant_is_refused_before_the_test_begins(suite: pytest.Pytester) -> None:
    """A meaningless value, or one that is always met, is an error with file and line; the test never runs."""
    code = "".join(
        f"\n@pytest.mark.swtrace({argument})\ndef test_{number}(): raise AssertionError('it ran')\n"
        for number, argument in enumerate(REFUSED)
    )
    result = outcomes(suite, code)
    result.assert_outcomes(errors=len(REFUSED))
    (file,) = suite.path.glob("test_*.py")
    lines = file.read_text().splitlines()
    for argument, message in REFUSED.items():
        line = lines.index(f"@pytest.mark.swtrace({argument})") + 1
        result.stdout.fnmatch_lines([f"{file.name}:{line}: *{message}"])
    assert "During handling" not in result.stdout.str()
    assert "it ran" not in result.stdout.str()
    assert "Traceback" not in result.stdout.str()


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


def old_pytest(suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, version: str, lacking: str) -> pytest.RunResult:
    """Run a suite with a plugin that was imported beside a pytest of some version, without what that one lacked."""
    suite.makepyfile(
        test_theirs="import pytest\n\ndef test_it(): pass\n",
        test_ours="import pytest\n\n@pytest.mark.swtrace(max_stall_ratio=1.0)\ndef test_it(): pass\n",
    )
    starter = suite.path / "starter.py"
    starter.write_text(
        f"import sys, pytest\nkept = vars(pytest).copy()\npytest.__version__ = {version!r}\n{lacking}\n"
        "import swtrace.testing.plugin\nvars(pytest).update(kept)\nsys.exit(pytest.main(sys.argv[1:]))\n"
    )
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # other plugins lack it, too
    return suite.run(sys.executable, starter, "-p", "swtrace.testing.plugin", timeout=patience())


def test_a_pytest_that_is_too_old_is_left_alone(suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """With pytest 6 every test runs as if swtrace were not installed, and one line says why."""
    result = old_pytest(suite, monkeypatch, "6.2.5", "del pytest.StashKey, pytest.Stash")
    result.assert_outcomes(passed=2)
    said = [line for line in result.outlines if "swtrace: the plugin is off" in line]
    assert len(said) == 1
    assert said[0].startswith("swtrace: the plugin is off: it needs pytest 7.0 or newer")


def test_a_pytest_without_new_style_wrappers_is_served(suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """With pytest 7.1, whose hooks know no `wrapper=True`, tests run, and the marker judges them."""
    lacking = """
theirs = pytest.hookimpl
def hookimpl(function=None, hookwrapper=False, optionalhook=False, tryfirst=False, trylast=False):
    return theirs(function, optionalhook=optionalhook, tryfirst=tryfirst, trylast=trylast)
pytest.hookimpl = hookimpl
"""
    result = old_pytest(suite, monkeypatch, "7.1.3", lacking)
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*no series recorded anything*"])


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


def test_a_test_that_measured_nothing_fails(suite: pytest.Pytester) -> None:
    """Where no series ran, the marker fails instead of passing, and says what may be the cause."""
    result = outcomes(suite, "\n@pytest.mark.swtrace(max_stall_ratio=1.0)\ndef test_it(): pass\n")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*no series recorded anything*"])


def test_steps_without_instants_are_not_taken_for_measured(suite: pytest.Pytester) -> None:
    """Limits hold for timed steps; where too few of a device's steps were timed, the failure says how many were not."""
    result = outcomes(
        suite,
        """
from swtrace.trace.schema import Clock

def sampled(swtrace, every):
    made = RecordedRun(swtrace.directory, clock=Clock.DEVICE)
    if every:
        made.write_every(every, 12)
    else:
        made.write_untimed()
    made.close()

@pytest.mark.swtrace(max_stall_ratio=0.06, min_steps=3)
def test_enough(swtrace): sampled(swtrace, 4)

@pytest.mark.swtrace(max_stall_ratio=0.06, min_steps=5)
def test_too_few(swtrace): sampled(swtrace, 4)

@pytest.mark.swtrace(max_stall_ratio=0.06)
def test_none(swtrace): sampled(swtrace, 0)
""",
    )
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines(
        [
            "*only 3 timed steps (and 9 untimed) finished, fewer than min_steps=5",
            "*no timed step: 1 step is untimed; recorded: *",
        ]
    )


def test_a_failing_test_reports_its_own_reason(suite: pytest.Pytester) -> None:
    """If a test fails, its marker's limits are not checked on top."""
    result = outcomes(suite, "\n@pytest.mark.swtrace(max_stall_ratio=0.0)\ndef test_it(): assert 1 == 2\n")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*assert 1 == 2*"])
    assert "no series" not in result.stdout.str()


def test_lost_records_fail_instead_of_passing_for_good(suite: pytest.Pytester) -> None:
    """A ring that was lapped proves nothing: the failure names the ini option that gives it more room."""
    result = outcomes(
        suite,
        """
@pytest.mark.swtrace(max_stall_ratio=1.0)
def test_it(swtrace):
    made = RecordedRun(swtrace.directory, records=64)
    made.write(100)
    made.close()
""",
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*records were lost*swtrace_ring_records*"])


def test_the_fixture_answers_questions(suite: pytest.Pytester) -> None:
    """Facts by series, rank, layer, phase and step are what the run's schedule says."""
    result = outcomes(
        suite,
        """
from tests.support.recorded_run import LAYER_NS, STALL_NS, TRANSFER_NS
from swtrace.errors import EmptySelectionError

def test_nothing_at_all(swtrace):
    with pytest.raises(EmptySelectionError, match="no finished step matches layer=7; recorded: nothing"):
        assert swtrace.stall_seconds(layer=7) < 0.001

def test_it(swtrace):
    run(swtrace)
    stall = 10 * STALL_NS * 1e-9
    assert swtrace.stall_seconds() == pytest.approx(stall)  # position 2 belongs to rank 0: rank 1 waits
    assert swtrace.stall_seconds(rank=0) == 0
    assert swtrace.stall_seconds(rank=1, layer=2) == pytest.approx(stall)
    assert swtrace.stall_seconds(layer=3) == 0
    assert swtrace.stall_seconds(steps=range(4, 8)) == pytest.approx(stall * 0.4)
    assert swtrace.stall_seconds(warmup=9) == pytest.approx(stall * 0.1)
    for nothing in ({"phase": "prefill"}, {"layer": 99}, {"rank": 7}, {"series": "nope"}, {"warmup": 10}):
        for question in ("stall_seconds", "stall_ratio", "efficiency", "on_time_rate", "occupancy", "sums"):
            with pytest.raises(EmptySelectionError, match="no finished step matches .*; recorded: self_attn.o_proj"):
                getattr(swtrace, question)(**nothing)
    assert swtrace.stall_seconds(phase="decode") == pytest.approx(stall)
    assert swtrace.stall_ratio(rank=1) == pytest.approx(STALL_NS / (6 * LAYER_NS))
    assert 0 < swtrace.efficiency() < 1
    assert swtrace.on_time_rate(layer=2) == 0.0
    assert swtrace.on_time_rate(layer=1) == 1.0
    assert swtrace.lost == 0
    states = swtrace.occupancy(rank=1)
    assert sum(states.values()) == pytest.approx(2)
    assert all(mean >= 0 for mean in states.values())
    waits = swtrace.waits(rank=1, layer=2)
    assert waits.rows == 10 and set(waits["outcome"]) == {"stalled"} and set(waits["stall_ns"]) == {STALL_NS}
    assert swtrace.step_table().rows == 20
    exported = swtrace.span_exporter(steps=range(1, 3)).get_finished_spans()
    assert len([span for span in exported if span.name == "swtrace.step"]) == 4
    registry = swtrace.registry()
    name, labels = "swtrace_steps_total", {"rank": "1", "series": "self_attn.o_proj"}
    found = [s for family in registry.collect() for s in family.samples if s.name == name]
    assert [s.value for s in found] == [10, 10]
""",
    )
    result.assert_outcomes(passed=2)


def test_each_test_sees_its_own_runs_and_leaves_nothing_behind(suite: pytest.Pytester) -> None:
    """Rings and environment belong to one test; afterwards both are as they were before."""
    result = outcomes(
        suite,
        """
seen = []

@pytest.mark.parametrize("steps", [3, 5])
def test_it(swtrace, steps):
    assert os.environ["SWTRACE"] == "1" and os.environ["SWTRACE_DIR"] == str(swtrace.directory)
    assert "SWTRACE_RUN_ID" not in os.environ
    run(swtrace, steps)
    assert swtrace.step_table(rank=0).rows == steps
    seen.append(swtrace.directory)

def test_after():
    assert "SWTRACE" not in os.environ and "SWTRACE_DIR" not in os.environ
    assert len(set(seen)) == 2 and not any(folder.exists() for folder in seen)
""",
    )
    result.assert_outcomes(passed=3)


def test_two_runs_in_one_test_both_count(suite: pytest.Pytester) -> None:
    """A test may run its model twice: each run warms up for itself, and both are summed up."""
    result = outcomes(
        suite,
        """
def test_it(swtrace):
    run(swtrace, 6, "first")
    run(swtrace, 6, "second")
    assert swtrace.step_table(rank=0, warmup=2).rows == 8
""",
    )
    result.assert_outcomes(passed=1)


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


def test_the_plugin_costs_nothing_unused(suite: pytest.Pytester) -> None:
    """A suite that uses neither fixture nor marker loads nothing of swtrace but the plugin."""
    suite.makepyfile(
        """
import sys
def test_it():
    loaded = sorted(name for name in sys.modules if name.startswith("swtrace"))
    plugin = ("swtrace.testing" + name for name in ("", ".plugin", ".pytest_hooks"))
    assert loaded == ["swtrace", *plugin, "swtrace.version"], loaded
    assert not {"numpy", "torch", "opentelemetry", "prometheus_client"} & set(sys.modules)
"""
    )
    os.environ.pop("PYTEST_PLUGINS", None)
    arguments = ("-p", "no:hypothesispytest", "-p", "no:cacheprovider")
    suite.runpytest_subprocess(*arguments, timeout=patience()).assert_outcomes(passed=1)


def test_the_examples_pass_and_fail_as_they_say(suite: pytest.Pytester) -> None:
    """Of the examples one file passes; the other fails with a message that names value, limit, layer and reason."""
    examples = Path(__file__).parents[2] / "examples"
    done = suite.run(
        sys.executable,
        *("-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", examples),
        *("-c", os.devnull, "--runxfail", examples / "test_hidden.py", examples / "test_stalled.py"),
        timeout=patience(),
    )
    done.stdout.fnmatch_lines(
        [
            "swtrace: stall ratio 37.5 % is above 5.0 % on rank 0 of o_proj; 3 more broken limits below",
            "*:*: @pytest.mark.swtrace(min_efficiency=0.9, max_stall_ratio=0.05, series='o_proj', warmup=3)",
            "series o_proj, 27 steps after 3 warm-up steps",
            "rank     step    stall  stall ratio  efficiency  on time  broken limits",
            "   0  9.60 ms  3.60 ms       37.5 %      25.0 %    0.0 %  stall ratio 37.5 % is above 5.0 %; *",
            "layers that stall most, mean per step",
            "   1     10       0  0.60 ms           16.7 %  transfer",
            "verdict on these 27 steps",
            "- The most stalled rank (0) waits for weights 37.5 % of its step time *",
            "*Transfer 0.80 ms > compute 0.50 ms per layer: no prefetch step can hide this*",
            "1 failed, 2 passed*",
        ]
    )
