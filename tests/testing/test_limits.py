"""The marker's limits: what breaks one, and what cannot be judged."""

from __future__ import annotations

import pytest

from tests.support.suites import outcomes

pytest_plugins = ["pytester"]


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
    "speed=1": "has no argument 'speed': must be one of: baseline, layer, max_stall_ratio, *within_plan",
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


def test_a_run_must_keep_to_its_plan(suite: pytest.Pytester) -> None:
    """A run within the range passes. One above it fails with both figures, and so does one that cannot be compared."""
    result = outcomes(
        suite,
        """
from dataclasses import replace
from tests.support.recorded_run import AS_PLANNED, Interval
slower = replace(AS_PLANNED, step_ns=Interval(5e6, 4.9e6, 5.1e6))
other = replace(AS_PLANNED, differs="prefetch step 1, not 2")

@pytest.mark.parametrize("planned", [AS_PLANNED, slower, other, None])
@pytest.mark.swtrace(within_plan=True)
def test_it(swtrace, planned): run(swtrace, planned=planned)
""",
    )
    result.assert_outcomes(passed=1, failed=3)
    result.stdout.fnmatch_lines(
        [
            "swtrace: step time above the plan (Step time: planned 5.00 ms (4.90 to 5.10), measured 6.00 ms. *",
            "swtrace: series 'self_attn.o_proj' cannot be compared with *: prefetch step 1, not 2.",
            "swtrace: series 'self_attn.o_proj' has no plan to be within: set SWTRACE_PLAN*",
        ]
    )


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


def test_a_failure_names_hosts_where_there_are_several(suite: pytest.Pytester) -> None:
    """A rank is named with its host, in the first line, the table and the verdict, if ranks are on several hosts."""
    code = """
@pytest.mark.swtrace(max_stall_ratio=0.01)
def test_it(swtrace):
    made = RecordedRun(swtrace.directory, run_id="run", hosts=("gpu-a", "gpu-b"), ahead_ns=10**9)
    made.write(10)
    made.close()
"""
    result = outcomes(suite, code)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["swtrace: stall ratio 5.0 % is above 1.0 % on rank 1 (gpu-b) of *", "1 (gpu-b) *", "- *(1, gpu-b) waits*"]
    )


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
