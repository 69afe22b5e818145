"""The pytest plugin: a fixture and a marker, both called ``swtrace``.

It imports only pytest, and does nothing until a test uses the fixture or the marker.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from swtrace.testing.limits import Baseline, Limits
    from swtrace.testing.tracing import Tracing

_MARKER = (
    "swtrace(min_efficiency, max_stall_ratio, min_on_time_rate, max_stall_seconds, within_plan, series, rank, layer, "
    "phase, steps, warmup, min_steps, baseline, tolerance): record the series that run in this test, in any process, "
    "and fail the test if a limit is broken."
)


class _State:
    """Results collected by one pytest process."""

    def __init__(self) -> None:
        self.fresh: dict[str, Baseline] = {}
        self.known: dict[str, Baseline] | None = None
        # Ordered sets: a test that runs again still counts once.
        self.without: dict[str, None] = {}
        self.checked: dict[str, None] = {}


_STATE = pytest.StashKey[_State]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add command-line and ini options."""
    group = parser.getgroup("swtrace", "prefetch of shared-weight series")
    group.addoption("--swtrace-baseline", metavar="FILE", default=None, help="Baseline file (ini: swtrace_baseline).")
    group.addoption(
        "--swtrace-save-baseline",
        action="store_true",
        help="Save this run's measurements as baselines instead of comparing with them.",
    )
    parser.addini("swtrace_baseline", "Baseline file.", default="swtrace-baseline.json")
    parser.addini("swtrace_tolerance", "How much worse than the baseline is accepted: 0.1 is 10 %.", default="0.1")
    parser.addini(
        "swtrace_ring_records", "Capacity of each rank's ring during a test, in records; a power of two.", default=""
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line("markers", _MARKER)
    config.stash[_STATE] = _State()


@pytest.fixture
def swtrace(request: pytest.FixtureRequest) -> Iterator[Tracing]:
    """Record the series that run in this test: in this process, its children and vLLM's workers.

    Provides ``stall_seconds()``, ``stall_ratio()``, ``efficiency()``, ``on_time_rate()``, ``occupancy()``, ``waits()``,
    ``spans()`` and more, each with ``series=``, ``rank=``, ``layer=``, ``phase=``, ``steps=`` and ``warmup=``.
    """
    from swtrace.testing.tracing import DEFAULT_RECORDS, Tracing

    text = str(request.config.getini("swtrace_ring_records")).strip()
    records = int(text) if text.isdecimal() else 0 if text else DEFAULT_RECORDS
    if records < 1 or records & (records - 1):
        pytest.fail(f"ini option swtrace_ring_records: must be a power of two, not {text!r}", pytrace=False)
    with Tracing(records=records) as tracing:
        yield tracing


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the fixture first in every marked test, so that processes started by other fixtures are recorded."""
    for item in items:
        names: list[str] | None = getattr(item, "fixturenames", None)
        if names is not None and item.get_closest_marker("swtrace") is not None:
            # Copy the list: the cases of a parametrized test share one, and only some may be marked.
            item.fixturenames = ["swtrace", *(name for name in names if name != "swtrace")]  # type: ignore[attr-defined]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Reject an invalid marker before any fixture is set up."""
    marker = item.get_closest_marker("swtrace")
    if marker is not None:
        _limits(item, marker)


# Runs last and is not a wrapper, so it is reached only if the test has passed. Old versions of pytest support this.
@pytest.hookimpl(trylast=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    """Check the limits of a marked test that has passed."""
    marker = item.get_closest_marker("swtrace")
    if marker is not None:
        _check(item, _limits(item, marker))


def _limits(item: pytest.Item, marker: pytest.Mark) -> Limits:
    """Return the limits of a marker, or fail with the file and line of the test."""
    from swtrace.errors import SettingsError
    from swtrace.testing.limits import Limits

    problem = ""
    if marker.args:
        given = ", ".join(map(repr, marker.args))
        problem = f"@pytest.mark.swtrace({given}): arguments must be named, such as max_stall_ratio=0.05"
    elif _stacked(item):
        problem = "two @pytest.mark.swtrace on one function, of which pytest reads one: put all arguments into one"
    try:
        limits = Limits.of(marker.kwargs)
    except SettingsError as error:
        problem = problem or str(error)
    if problem:
        pytest.fail(f"{_place(item)}: {problem}", pytrace=False)
    return limits


def _stacked(item: pytest.Item) -> bool:
    """Return whether a function has more than one marker of its own. Those of a class or of one case may be beside."""
    marks: object = getattr(getattr(item, "obj", None), "pytestmark", None)
    return isinstance(marks, list) and [mark.name for mark in marks].count("swtrace") > 1


def _place(item: pytest.Item) -> str:
    path, line, _ = item.location
    return f"{path}:{(line or 0) + 1}"


def _check(item: pytest.Item, limits: Limits) -> None:
    from swtrace.errors import SettingsError
    from swtrace.testing.limits import Measurement, judge, measured, place

    state, tracing = item.config.stash[_STATE], getattr(item, "funcargs", {}).get("swtrace")
    if tracing is None:
        pytest.fail("@pytest.mark.swtrace works only on test functions: this item has no fixtures", pytrace=False)
    state.checked[item.nodeid] = None
    try:
        baseline = _baseline(item, limits, state)
        why = judge(tracing, limits, baseline, _tolerance(item.config, limits))
    except SettingsError as error:
        why = str(error)
    # Not in the handler above, because pytest would also show the original error.
    if why:
        first, *others = why.splitlines()
        where = f"{_place(item)}: @pytest.mark.swtrace({limits})"
        pytest.fail("\n".join((f"swtrace: {first}", where, *others)), pytrace=False)
    if limits.baseline:
        state.fresh[item.nodeid] = {
            place(*at): Measurement.of(recent) for at, recent in measured(tracing, limits).items()
        }


def _baseline(item: pytest.Item, limits: Limits, state: _State) -> Baseline | None:
    """Return the baseline of this test, if it is compared with one."""
    if not limits.baseline or item.config.getoption("--swtrace-save-baseline"):
        return None
    if state.known is None:
        from swtrace.testing.limits import load_baselines

        state.known = load_baselines(_path(item.config))
    if item.nodeid not in state.known:
        state.without[item.nodeid] = None
    return state.known.get(item.nodeid)


def _tolerance(config: pytest.Config, limits: Limits) -> float:
    if limits.tolerance is not None:
        return limits.tolerance
    from swtrace.errors import SettingsError

    text = config.getini("swtrace_tolerance")
    try:
        tolerance = float(text)
    except ValueError:
        tolerance = -1.0
    if not 0 <= tolerance < float("inf"):
        raise SettingsError(f"ini option swtrace_tolerance: must be a number of at least 0, not {text!r}")
    return tolerance


def _path(config: pytest.Config) -> Path:
    given = config.getoption("--swtrace-baseline")
    return Path(given) if given else config.rootpath / str(config.getini("swtrace_baseline"))


# Under xdist, every worker checks its own tests, and the controller writes the file.


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Save baselines, or pass them to the xdist controller."""
    config = session.config
    state = config.stash[_STATE]
    output: dict[str, Any] | None = getattr(config, "workeroutput", None)
    if output is not None:
        from swtrace.testing.limits import encode_baseline

        fresh = {test: encode_baseline(baseline) for test, baseline in state.fresh.items()} if state.fresh else {}
        output["swtrace"] = json.dumps({"fresh": fresh, "without": [*state.without], "checked": [*state.checked]})
    elif state.fresh and config.getoption("--swtrace-save-baseline"):
        from swtrace.testing.limits import save_baselines

        save_baselines(_path(config), state.fresh)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Merge the results of an xdist worker."""
    text = getattr(node, "workeroutput", {}).get("swtrace")
    if text is None:
        return
    from swtrace.testing.limits import decode_baseline

    state: _State = node.config.stash[_STATE]
    results = json.loads(text)
    state.fresh.update((test, decode_baseline(places)) for test, places in results["fresh"].items())
    state.without.update(dict.fromkeys(results["without"]))
    state.checked.update(dict.fromkeys(results["checked"]))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print what was saved, or which tests have no baseline."""
    state = config.stash[_STATE]
    if not (state.fresh or state.without):
        return
    from swtrace.units import counted

    if state.fresh and config.getoption("--swtrace-save-baseline"):
        terminalreporter.write_sep("-", "swtrace")
        terminalreporter.write_line(f"baselines of {counted(len(state.fresh), 'test')} saved in {_path(config)}")
    elif state.without:
        terminalreporter.write_sep("-", "swtrace")
        terminalreporter.write_line(
            f"{len(state.without)} of {counted(len(state.checked), 'checked test')} "
            f"{'has' if len(state.without) == 1 else 'have'} no baseline yet: run with --swtrace-save-baseline"
        )
        for test in state.without:
            terminalreporter.write_line(f"  {test}")
