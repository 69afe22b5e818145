"""``swtrace demo``: start ranks, daemon and reader, watch them, and print the summary.

If the daemon or the reader dies, the ranks continue. If a rank dies, its group ends with an error that
names it. No process outlives the command.
"""

from __future__ import annotations

import importlib.util
import io
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from swtrace.cli.arguments import choice_option, number, whole_number
from swtrace.cli.child import Child, DaemonProcess, wait_for_lines
from swtrace.cli.console import PIPE_WIDTH, data, missing_screen, narration, write_json
from swtrace.cli.demo.faults import KINDS, MAX_MS, parse
from swtrace.cli.demo.progress import Progress
from swtrace.cli.demo.report_lines import RankReport, What
from swtrace.cli.demo.scenarios import (
    DESCRIPTIONS,
    MAX_LAYERS,
    MAX_MIB,
    MAX_RANKS,
    MAX_SEED,
    MIN_MIB,
    Dials,
    Scenario,
    Transport,
    Windows,
    preset,
)
from swtrace.cli.exit_codes import CommandError, ExitCode
from swtrace.cli.ring_folder import make_folder
from swtrace.cli.signals import exit_in_order
from swtrace.cli.summary_process import Reader
from swtrace.cli.summary_text import print_summary
from swtrace.errors import SettingsError
from swtrace.settings import Settings
from swtrace.share import MUST_BE, Share
from swtrace.trace.directory import memory_folder
from swtrace.units import counted, listed

if TYPE_CHECKING:
    from swtrace.cli.summary import Summary
    from swtrace.ledger.planning.pareto import Budget

_POLL_S = 0.1
_DIALS = "Parameters (override the scenario)"


def _dial(option: str, text: str, metavar: str, parser: Callable[[str], Any]) -> Any:
    return typer.Option(option, help=text, metavar=metavar, parser=parser, show_default=False, rich_help_panel=_DIALS)


def _count(option: str, text: str, metavar: str, low: int, high: int | None = None) -> Any:
    return _dial(option, text, metavar, whole_number(option, low, high))


def _amount(option: str, text: str, metavar: str, low: float, high: float | None = None) -> Any:
    return _dial(option, text, metavar, number(option, low, high))


def _part(text: str) -> str:
    try:
        return str(Share.parse(text))
    except ValueError as error:
        raise SettingsError.of("--share", text, MUST_BE) from error


def _fault(text: str) -> str:
    parse(text)
    return text


_Count = Annotated[int | None, _count("--ranks", "Number of ranks (2).", "N", 2, MAX_RANKS)]
_Layers = Annotated[int | None, _count("--layers", "Number of layers (60).", "N", 2, MAX_LAYERS)]
_Part = Annotated[
    str | None,
    _dial("--share", "Which layers to share: all, none, a part such as 1/2, or a list (all).", "PART", _part),
]
_Mib = Annotated[float | None, _amount("--mib", "Size of one layer's weight (1).", "MIB", MIN_MIB, MAX_MIB)]
_Compute = Annotated[float | None, _amount("--compute-ms", "Compute per layer.", "MS", 0, MAX_MS)]
_PrefetchStep = Annotated[
    int | None, _count("--prefetch-step", "How many layers ahead a transfer starts.", "K", 0, MAX_LAYERS - 2)
]
_Windows = Annotated[
    Windows | None, choice_option("--windows", kind=Windows, metavar="POLICY", text="Window policy", panel=_DIALS)
]
_Jitter = Annotated[
    float | None, _amount("--jitter-ms", "Mean of the random extra compute per layer.", "MS", 0, MAX_MS)
]
_Faults = Annotated[
    list[str] | None,
    _dial(
        "--fault",
        f"Inject a fault, such as `straggler:rank=1,ms=2`; repeatable. Kinds: {', '.join(KINDS)} (see below).",
        "KIND:KEY=...",
        _fault,
    ),
]
_Steps = Annotated[int | None, _count("--steps", "Run this many steps instead of a duration.", "N", 1)]
_Duration = Annotated[float | None, _amount("--duration", "Run for this many seconds (8).", "SECONDS", 0)]
_Seed = Annotated[int, _count("--seed", "Seed of weights, inputs and jitter (0).", "N", 0, MAX_SEED)]


def demo(
    *,
    scenario: Annotated[
        Scenario,
        choice_option("--scenario", kind=Scenario, metavar="NAME", text="Preset of the parameters below"),
    ] = Scenario.HIDDEN,
    transport: Annotated[
        Transport,
        choice_option(
            "--transport", kind=Transport, metavar="NAME", text="How a weight gets to the ranks that do not own it"
        ),
    ] = Transport.BROADCAST,
    ranks: _Count = None,
    layers: _Layers = None,
    share: _Part = None,
    mib: _Mib = None,
    compute_ms: _Compute = None,
    prefetch_step: _PrefetchStep = None,
    windows: _Windows = None,
    jitter_ms: _Jitter = None,
    faults: _Faults = None,
    steps: _Steps = None,
    duration: _Duration = None,
    seed: _Seed = 0,
    max_stall: Annotated[
        str | None,
        typer.Option(
            "--max-stall",
            help="Then plan a share of the layers that stalls for at most this part of step time, and run with it.",
            metavar="PERCENT",
            show_default=False,
        ),
    ] = None,
    with_daemon: Annotated[
        bool, typer.Option("--daemon/--no-daemon", help="Start a daemon that serves metrics and a live API.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    tui: Annotated[
        bool | None,
        typer.Option(
            "--tui/--no-tui",
            help="Watch the run in `swtrace top`. Default: on in a terminal, unless --json.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Run a shared-weight series on real ranks on this machine, and print what sharing cost.

    N processes run a stack of real linear layers through the same runtime as vLLM. Each holds only its own layers, and
    gets the others' weights just in time. In every step, each layer's output is compared, bit for bit, with that of
    unshared weights.

    Ranks that broadcast (gloo) run the same steps, together. With `--transport pull`, each rank copies the weights from
    its peers' shared memory and runs its own steps. If one dies, the others go on.

    With `--max-stall 5%`, the demo then plans from its own records, as `swtrace plan` does: which share of the layers,
    with which prefetch step, saves most memory within this stall. It runs again with them, and compares the prediction
    with what it measures. If nothing is within it, the demo says what comes nearest, and ends.

    In a terminal, the demo opens `swtrace top` on the run, which stays open until you quit it. Then the summary
    follows.

    The rings are in `SWTRACE_DIR` if set, else in a temporary folder. Ctrl-C and SIGTERM end the run early, with a
    summary.
    """
    given: dict[str, Any] = {
        "ranks": ranks,
        "layers": layers,
        "share": share,
        "mib": mib,
        "compute_ms": compute_ms,
        "prefetch_step": prefetch_step,
        "windows": windows,
        "jitter_ms": jitter_ms,
        "faults": tuple(faults) if faults else None,
        "steps": steps,
        "seconds": duration,
    }
    dials = preset(scenario, transport)
    dials = replace(dials, seed=seed, **{name: value for name, value in given.items() if value is not None})
    if prefetch_step is None:
        dials = dials.fitting()
    if importlib.util.find_spec("torch") is None:
        raise CommandError("the demo needs torch, which is not installed; pip install torch")
    dials.check()
    settings = Settings.from_environment()
    limit = None if max_stall is None else _limit(max_stall, settings)
    if tui is None:
        tui = not as_json and not missing_screen() and sys.stderr.isatty()
    console = narration() if as_json else data()
    exit_in_order()
    with tempfile.TemporaryDirectory(prefix="swtrace-demo-", dir=memory_folder()) as folder:
        place = _Place(
            Path(folder),
            make_folder(settings.directory or Path(folder) / "rings"),
            settings.run_id or f"demo-{secrets.token_hex(3)}",
        )
        narration().print(f"[bold]{scenario.value}[/]: {DESCRIPTIONS[dials.transport][scenario]}")
        result = _run(scenario, dials, place, with_daemon=with_daemon, tui=tui)
        document, code = result.to_json(), result.code
        _show(result, console)
        if not settings.trace:
            narration().print("swtrace: no rank wrote a ring because SWTRACE_TRACE=0.")
        if limit is not None and code is ExitCode.SUCCESS:
            planned = _run_as_planned(result, limit, place, console, with_daemon=with_daemon, tui=tui)
            document |= planned.to_json()
            code = planned.code
    if as_json:
        write_json(document)
    raise typer.Exit(code)


def _limit(max_stall: str, settings: Settings) -> Budget:
    from swtrace.cli.plan.asked import budget

    if not settings.trace:
        raise CommandError("--max-stall plans from records, and SWTRACE_TRACE=0 writes none", ExitCode.USAGE)
    return budget(max_stall, None)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a run keeps its files, and how readers find it."""

    workspace: Path
    """Removed at the end."""
    rings: Path
    run_id: str
    plan: Path | None = None
    """What the run is compared with."""

    def environment(self) -> dict[str, str]:
        """Return the variables of its ranks."""
        return {
            "SWTRACE": "1",
            "SWTRACE_DIR": str(self.rings),
            "SWTRACE_RUN_ID": self.run_id,
            "GLOO_SOCKET_IFNAME": "lo",
            "OMP_NUM_THREADS": "1",
            **({} if self.plan is None else {"SWTRACE_PLAN": str(self.plan)}),
        }


@dataclass(slots=True)
class _Ranks:
    """What the ranks have reported so far."""

    checked: int = 0
    steps: dict[int, int] = field(default_factory=dict)
    """Of the ranks that finished."""
    failed: dict[int, str] = field(default_factory=dict)
    statuses: dict[int, int] = field(default_factory=dict)
    faults: list[RankReport] = field(default_factory=list)
    """Those that began."""

    @property
    def code(self) -> ExitCode:
        statuses = set(self.statuses.values())
        if ExitCode.OUTPUT_DIFFERS in statuses:
            return ExitCode.OUTPUT_DIFFERS
        if ExitCode.RANK_LOST in statuses or any(status < 0 for status in statuses):
            return ExitCode.RANK_LOST
        return ExitCode.FAILED if statuses - {0} or not statuses else ExitCode.SUCCESS


@dataclass(frozen=True, slots=True)
class _Result:
    """How the demo ended."""

    scenario: Scenario
    dials: Dials
    ranks: _Ranks
    code: ExitCode
    daemon_url: str | None
    summary: Summary

    def to_json(self) -> dict[str, object]:
        return {
            "scenario": self.scenario.value,
            "dials": asdict(self.dials),
            "exit_code": int(self.code),
            "outputs_checked": self.ranks.checked,
            "outputs_identical": self.code is ExitCode.SUCCESS and self.ranks.checked > 0,
            "rank_errors": {str(rank): text for rank, text in sorted(self.ranks.failed.items())},
            "faults": [
                {"fault": each.text, "rank": each.rank, "began_unix_ns": each.unix_ns} for each in self.ranks.faults
            ],
            "daemon_url": self.daemon_url,
            "summary": self.summary.to_json(),
        }


@dataclass(frozen=True, slots=True)
class _Planned:
    """What followed from a run with ``--max-stall``."""

    plan: dict[str, Any]
    """As `swtrace plan --json` prints it."""
    second: _Result | None
    """The run with the chosen settings; None if none were chosen."""
    conclusion: tuple[str, ...]

    @property
    def code(self) -> ExitCode:
        return ExitCode.SUCCESS if self.second is None else self.second.code

    def to_json(self) -> dict[str, object]:
        return {
            "plan": self.plan,
            "second_run": None if self.second is None else self.second.to_json(),
            "conclusion": list(self.conclusion),
        }


def _run_as_planned(
    first: _Result, limit: Budget, place: _Place, console: Console, *, with_daemon: bool, tui: bool
) -> _Planned:
    """Plan from the records of a run, run again with the chosen settings, and compare."""
    from swtrace.cli.demo.within_limit import chosen_dials, conclude, plan_of, question
    from swtrace.cli.plan.document import document

    asked = question(limit)
    with narration().status("planning") as status:
        source, plan = plan_of(place.rings, place.run_id, asked, status.update)
    dials, file = chosen_dials(first.dials, plan), plan.plan_file()
    second = None
    if dials is not None and file is not None:
        place = replace(place, run_id=f"{place.run_id}-planned", plan=place.workspace / "plan.json")
        file.write(place.workspace / "plan.json")
        narration().print(f"\n[bold]planned[/]: again, with {file.settings['share']} of the layers shared.")
        second = _run(first.scenario, dials, place, with_daemon=with_daemon, tui=tui)
        _show(second, console)
    said = conclude(plan, first.summary, None if second is None else second.summary)
    if second is None or second.code is ExitCode.SUCCESS:
        console.print()
        for sentence in said:
            console.print(sentence, markup=False)
    return _Planned(document(source, (plan,), asked), second, said)


def _run(scenario: Scenario, dials: Dials, place: _Place, *, with_daemon: bool, tui: bool) -> _Result:
    console, directory, run_id = narration(), place.rings, place.run_id
    with ExitStack() as stack:
        console.print(_describe(dials, directory), soft_wrap=True, markup=False)
        arguments = [dials.to_json(), str(place.workspace / f"rendezvous-{run_id}")]
        launcher = stack.enter_context(
            Child.start("swtrace.cli.demo.launcher", arguments, environment=place.environment())
        )
        reader = stack.enter_context(Reader(directory, run_id))
        daemon = stack.enter_context(DaemonProcess(directory, run_id)) if with_daemon else None
        ranks = _Ranks()
        stopped: ExitCode | None = None
        try:
            if tui:
                _watch_in_terminal(directory, run_id, launcher, reader, daemon, ranks)
            _supervise(launcher, reader, daemon, ranks, console)
        except (KeyboardInterrupt, SystemExit) as signalled:
            stopped = ExitCode.INTERRUPTED
            if isinstance(signalled, SystemExit):
                if signalled.code != ExitCode.TERMINATED:
                    raise
                stopped = ExitCode.TERMINATED
            console.print(f"{stopped.name.capitalize()}; stopping the ranks.")
            launcher.close()
        return _Result(
            scenario,
            dials,
            ranks,
            ranks.code if stopped is None else stopped,
            daemon.url if daemon is not None else None,
            reader.finish(),
        )


def _watch_in_terminal(
    directory: Path,
    run_id: str,
    launcher: Child,
    reader: Reader,
    daemon: DaemonProcess | None,
    ranks: _Ranks,
) -> None:
    """Run `swtrace top` until the user quits it, then print the messages that arrived meanwhile."""
    terminal = subprocess.Popen(
        [sys.executable, "-P", "-m", "swtrace", "top", "--run", run_id, "--before-summary"],
        env={**os.environ, "SWTRACE_DIR": str(directory)},
    )
    deferred = Console(file=io.StringIO(), width=PIPE_WIDTH, highlight=False)
    try:
        _supervise(launcher, reader, daemon, ranks, deferred, while_=lambda: terminal.poll() is None)
    finally:
        terminal.terminate()
        terminal.wait()
    sys.stderr.write(deferred.file.getvalue())  # type: ignore[attr-defined]
    if launcher.readable:
        sys.stderr.write("The run continues, and its summary follows. Press Ctrl-C to end the run early.\n")


def _supervise(
    launcher: Child,
    reader: Reader,
    daemon: DaemonProcess | None,
    ranks: _Ranks,
    console: Console,
    *,
    while_: Callable[[], bool] | None = None,
) -> None:
    """Watch until every rank has ended; with ``while_``, as long as it returns True, without showing progress."""
    progress = Progress(console if while_ is None else Console(file=io.StringIO(), quiet=True))
    reported: set[str] = set()

    def report_once(name: str, text: str) -> None:
        if name not in reported:
            reported.add(name)
            console.print(text)

    try:
        while while_() if while_ is not None else launcher.readable:
            wait_for_lines([launcher, reader.child, *([daemon.child] if daemon is not None else [])], _POLL_S)
            for line in launcher.lines():
                _handle(line, ranks, console)
            if reader.poll() and reader.summary is not None:
                progress.show(reader.summary)
            if not reader.child.readable:
                report_once("reader", "The reader ended. The ranks go on, and their rings are read again at the end.")
            if daemon is None:
                continue
            if daemon.poll():
                console.print(f"daemon: {daemon.url}/metrics, live API at {daemon.url}/api/v1/", soft_wrap=True)
            if not daemon.child.readable:
                said = daemon.said[-1] if daemon.said else "no output"
                report_once("daemon", f"The daemon ended ({said}). The ranks go on.")
    finally:
        progress.close()


def _handle(line: str, ranks: _Ranks, console: Console) -> None:
    try:
        event = RankReport.parse(line)
    except ValueError:
        console.print(line, markup=False)
        return
    match event.what:
        case What.STARTED:
            console.print(f"rank {event.rank}: pid {event.pid}")
        case What.FINISHED:
            ranks.steps[event.rank] = event.steps
            ranks.checked += event.checked
        case What.FAILED:
            ranks.failed[event.rank] = event.text
            console.print(f"[bold red]rank {event.rank}:[/] ", end="")
            console.print(event.text, markup=False, soft_wrap=True)
        case What.EXITED:
            ranks.statuses[event.rank] = event.status
            if event.status < 0:
                ranks.failed[event.rank] = f"killed by {signal.Signals(-event.status).name}"
                console.print(f"[bold red]rank {event.rank}:[/] {ranks.failed[event.rank]}")
        case What.FAULT:
            ranks.faults.append(event)
            console.print(f"fault: {parse(event.text).sentence(event.rank)}")
        case What.READY:
            pass


def _show(result: _Result, console: Console) -> None:
    print_summary(result.summary, console)
    console.print()
    if result.code is ExitCode.SUCCESS:
        fewest, most = min(result.ranks.steps.values()), max(result.ranks.steps.values())
        steps = counted(most, "step") if fewest == most else f"{fewest} to {most} steps"
        console.print(
            f"Compared {counted(result.ranks.checked, 'layer output')} of {steps} with unshared weights: all "
            "bit-identical."
        )
    elif result.code is ExitCode.OUTPUT_DIFFERS:
        console.print("[bold red]Outputs differ from those of unshared weights.[/]")
    elif result.code is ExitCode.RANK_LOST and result.dials.transport is Transport.PULL:
        lost, others = listed("rank", sorted(result.ranks.failed)), sorted(result.ranks.steps)
        went_on = f" {listed('rank', others).capitalize()} went on." if others else ""
        console.print(f"[bold red]Lost {lost}.[/]{went_on}")
    elif result.code is ExitCode.RANK_LOST:
        console.print("[bold red]The group ended because a rank was lost.[/]")


def _describe(dials: Dials, directory: Path) -> str:
    extent = counted(dials.steps, "step") if dials.steps is not None else f"{dials.seconds:g} s"
    jitter = f", {dials.jitter_ms:g} ms mean jitter" if dials.jitter_ms else ""
    part = f" ({len(dials.shared)} of them shared)" if len(dials.shared) < dials.layers else ""
    share = "observe" if dials.observes else dials.transport.value
    ahead = "" if dials.observes else f", prefetch step {dials.prefetch_step}"
    return (
        f"{dials.ranks} ranks that {share}, {dials.layers} layers of {dials.mib:g} MiB{part}, "
        f"{dials.compute_ms:g} ms compute per layer{jitter}{ahead}, {extent}; "
        f"rings in {directory}"
    )
