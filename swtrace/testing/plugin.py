"""The pytest plugin: a fixture and a marker, both called ``swtrace``.

Every pytest run of an environment that has swtrace imports this module: it imports nothing but pytest, and
does nothing until a test asks for the fixture or carries the marker.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from swtrace.testing.limits import Baseline, Limits
    from swtrace.testing.tracing import Tracing

_MARKER = (
    "swtrace(min_efficiency, max_stall_ratio, min_on_time_rate, max_stall_seconds, series, rank, layer, phase, steps, "
    "warmup, min_steps, baseline, tolerance): record the series that run in this test, in any process, and fail where "
    "prefetch does not hide as asked for."
)


class _State:
    """What one process of pytest has collected."""

    def __init__(self) -> None:
        self.fresh: dict[str, Baseline] = {}
        self.known: dict[str, Baseline] | None = None
        self.without: list[str] = []
        self.checked = 0


_STATE = pytest.StashKey[_State]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("swtrace", "prefetch of shared-weight series")
    group.addoption(
        "--swtrace-baseline", metavar="FILE", default=None, help="File of baselines (ini: swtrace_baseline)."
    )
    group.addoption(
        "--swtrace-save-baseline",
        action="store_true",
        help="Save what this run measures, instead of comparing with it.",
    )
    parser.addini("swtrace_baseline", "File of baselines.", default="swtrace-baseline.json")
    parser.addini("swtrace_tolerance", "How much worse than the baseline is accepted: 0.1 is 10 %.", default="0.1")
    parser.addini("swtrace_ring_records", "Capacity of a rank's ring during a test.", default="")


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line("markers", _MARKER)
    config.stash[_STATE] = _State()


@pytest.fixture
def swtrace(request: pytest.FixtureRequest) -> Iterator[Tracing]:
    """Record the series that run in this test: in this process, in its children, in vLLM's workers.

    Offers ``stall_seconds()``, ``stall_ratio()``, ``efficiency()``, ``on_time_rate()``, ``occupancy()``, ``waits()``,
    ``spans()`` and more, each with ``series=``, ``rank=``, ``layer=``, ``phase=``, ``steps=`` and ``warmup=``.
    """
    from swtrace.testing.tracing import DEFAULT_RECORDS, Tracing

    records = int(request.config.getini("swtrace_ring_records") or DEFAULT_RECORDS)
    with Tracing(records=records) as tracing:
        yield tracing


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give every test that carries the marker the fixture, before any other: what others start is recorded, too."""
    for item in items:
        names: list[str] | None = getattr(item, "fixturenames", None)
        if names is not None and item.get_closest_marker("swtrace") is not None:
            if "swtrace" in names:
                names.remove("swtrace")
            names.insert(0, "swtrace")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Run the test; if it passes, check what its marker asks for."""
    result = yield
    marker = item.get_closest_marker("swtrace")
    if marker is not None:
        _check(item, marker)
    return result


def _check(item: pytest.Item, marker: pytest.Mark) -> None:
    from swtrace.errors import SettingsError
    from swtrace.testing.limits import Limits, Measurement, judge, measured, place

    if marker.args:
        pytest.fail("@pytest.mark.swtrace takes its arguments by name", pytrace=False)
    state, tracing = item.config.stash[_STATE], getattr(item, "funcargs", {}).get("swtrace")
    if tracing is None:
        pytest.fail("@pytest.mark.swtrace needs a test function: this item has no fixtures", pytrace=False)
    try:
        limits = Limits.of(marker.kwargs)
        baseline = _baseline(item, limits, state)
        why = judge(tracing, limits, baseline, _tolerance(item.config, limits))
    except SettingsError as error:
        pytest.fail(str(error), pytrace=False)
    state.checked += 1
    if why:
        pytest.fail(f"swtrace: {why}", pytrace=False)
    if limits.baseline:
        state.fresh[item.nodeid] = {
            place(*at): Measurement.of(recent) for at, recent in measured(tracing, limits).items()
        }


def _baseline(item: pytest.Item, limits: Limits, state: _State) -> Baseline | None:
    """Return what this test is compared with."""
    if not limits.baseline or item.config.getoption("--swtrace-save-baseline"):
        return None
    if state.known is None:
        from swtrace.testing.baselines import load

        state.known = load(_path(item.config))
    if item.nodeid not in state.known:
        state.without.append(item.nodeid)
    return state.known.get(item.nodeid)


def _tolerance(config: pytest.Config, limits: Limits) -> float:
    if limits.tolerance is not None:
        return limits.tolerance
    from swtrace.errors import SettingsError

    text = config.getini("swtrace_tolerance")
    try:
        return float(text)
    except ValueError:
        raise SettingsError(f"ini option swtrace_tolerance: {text!r} is no number") from None


def _path(config: pytest.Config) -> Path:
    given = config.getoption("--swtrace-baseline")
    return Path(given) if given else config.rootpath / str(config.getini("swtrace_baseline"))


# Under xdist every worker checks its own tests; the controller writes the file.


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Save baselines, or hand them to the process that will."""
    config = session.config
    state = config.stash[_STATE]
    output: dict[str, Any] | None = getattr(config, "workeroutput", None)
    if output is not None:
        from swtrace.testing.baselines import encode

        fresh = {test: encode(baseline) for test, baseline in state.fresh.items()} if state.fresh else {}
        output["swtrace"] = json.dumps({"fresh": fresh, "without": state.without, "checked": state.checked})
    elif state.fresh and config.getoption("--swtrace-save-baseline"):
        from swtrace.testing.baselines import save

        save(_path(config), state.fresh)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take over what an xdist worker collected."""
    text = getattr(node, "workeroutput", {}).get("swtrace")
    if text is None:
        return
    from swtrace.testing.baselines import decode

    state: _State = node.config.stash[_STATE]
    told = json.loads(text)
    state.fresh.update((test, decode(places)) for test, places in told["fresh"].items())
    state.without += told["without"]
    state.checked += told["checked"]


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Say what was saved, and which tests have nothing to be compared with."""
    state = config.stash[_STATE]
    if state.fresh and config.getoption("--swtrace-save-baseline"):
        terminalreporter.write_sep("-", "swtrace")
        terminalreporter.write_line(f"baselines of {len(state.fresh)} tests saved in {_path(config)}")
    elif state.without:
        terminalreporter.write_sep("-", "swtrace")
        terminalreporter.write_line(
            f"{len(state.without)} of {state.checked} checked tests have no baseline yet: run with "
            "--swtrace-save-baseline"
        )
        for test in state.without:
            terminalreporter.write_line(f"  {test}")
