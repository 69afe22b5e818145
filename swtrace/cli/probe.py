"""``swtrace probe``: time what moves layers between ranks, and write a profile for the planner."""

from __future__ import annotations

import importlib.util
import os
import tempfile
import time
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from swtrace import units
from swtrace.cli.arguments import Force, file_option, number, refuse_existing, whole_number
from swtrace.cli.child import Child, wait_for_lines
from swtrace.cli.console import data, narration, table, write_json
from swtrace.cli.exit_codes import CommandError, ExitCode
from swtrace.cli.recorded import size
from swtrace.cli.signals import exit_in_order
from swtrace.settings import Settings
from swtrace.units import counted, listed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import Console

    from swtrace.profile import Profile, Timing
    from swtrace.series.probing.probe import Extent, Outcome, Progress

_RANKS = 2
_MAX_RANKS = 64
_LARGEST = "16M"
_RENDEZVOUS = timedelta(seconds=120)
_LINE_S = 5.0
_READY = "ready"
"""What a rank that this command started prints before it meets the others."""
_LOCAL = {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
"""Variables of ranks that this command starts. Values that are already set win."""


def probe(
    *,
    ranks: Annotated[
        int | None,
        typer.Option(
            "--ranks",
            help="Ranks to start on this machine (2). Not under torchrun, whose ranks are used.",
            metavar="N",
            parser=whole_number("--ranks", 2, _MAX_RANKS),
            show_default=False,
        ),
    ] = None,
    largest: Annotated[
        str,
        typer.Option(
            help="Largest size. The smallest is 64 KiB, each further one four times as large.", metavar="SIZE"
        ),
    ] = _LARGEST,
    exact: Annotated[
        list[str] | None,
        typer.Option("--bytes", help="Also this size, such as that of your layers. May be repeated.", metavar="SIZE"),
    ] = None,
    seconds: Annotated[
        float,
        typer.Option(
            "--seconds",
            help="Stop after this time. Everything is measured at least once, however long that takes.",
            metavar="SECONDS",
            parser=number("--seconds", 0, of="seconds"),
        ),
    ] = 10.0,
    output: Annotated[Path | None, file_option("--output", "-o", text="File to write the profile to, as JSON.")] = None,
    force: Force = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the profile as JSON instead of the table.")] = False,
    meet: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """Time the transfers between ranks, by broadcast and by pull, and write a profile for `swtrace plan`.

    Where the ranks have GPUs, it also times copies from pinned host memory to all of them at once (`h2d`), which limit
    vLLM's weight offloading. `swtrace stats --profile` compares.

    Without torchrun, the command starts its ranks on this machine. To time the ranks of your deployment, run it as
    they run: `torchrun --nproc-per-node 2 -m swtrace probe`.

    The table shows how long one transfer takes while 1, 2 or 4 are under way on a rank, from its issue to its arrival.
    *Computing* means that all ranks multiply matrices meanwhile. *Stretch* is how many times as long their products
    took because of the transfers.
    """
    if importlib.util.find_spec("torch") is None:
        raise CommandError("the probe needs torch, which is not installed; pip install torch")
    sizes = (size(largest, "--largest"), *(size(each, "--bytes") for each in exact or ()))
    if output is not None:
        refuse_existing(output, force=force)
    launched = _launched(ranks, meet)
    exit_in_order()
    settings = Settings.from_environment()
    with ExitStack() as stack:
        started = []
        if not launched:
            meet = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="swtrace-probe-")), "meet")
            options = ["--largest", largest, *(word for each in exact or () for word in ("--bytes", each))]
            started = _start_ranks(stack, ranks or _RANKS, [*options, "--seconds", str(seconds), "--meet", str(meet)])
        _await(started)
        outcome = _measure(sizes, seconds, settings, meet, started)
        while any(child.readable for child in started):  # a rank that is terminated while it exits says so
            wait_for_lines(started, _LINE_S)
            for child in started:
                child.lines()
    if outcome is not None:
        _report(outcome, output, as_json=as_json)


def _report(outcome: Outcome, output: Path | None, *, as_json: bool) -> None:
    for reason in outcome.left_out:
        narration().print(f"Not measured: {reason}", markup=False, soft_wrap=True)
    if output is not None:
        outcome.profile.write(output)
    if as_json:
        write_json(outcome.profile.to_json())
    else:
        _print(outcome.profile, data())
    if output is not None:
        narration().print(f"Wrote {output}", markup=False, soft_wrap=True)


# ---- the ranks -------------------------------------------------------------------------------------


def _launched(ranks: int | None, meet: Path | None) -> bool:
    """Return whether a launcher, such as torchrun, started this process as one rank of a world.

    Raises:
        CommandError: its world does not fit the options, has only one rank, or has no place to meet.
    """
    world = os.environ.get("WORLD_SIZE")
    if world is None or "RANK" not in os.environ:
        return False
    if ranks is not None:
        raise CommandError(
            f"--ranks cannot be used where a launcher has started the ranks (WORLD_SIZE={world})", ExitCode.USAGE
        )
    if world == "1":
        raise CommandError("a world of one rank has nothing to transfer; start at least two", ExitCode.USAGE)
    if meet is None and "MASTER_ADDR" not in os.environ:
        raise CommandError(
            "RANK is set, but not MASTER_ADDR; start the ranks with torchrun, or unset RANK", ExitCode.USAGE
        )
    return True


def _start_ranks(stack: ExitStack, world: int, options: Sequence[str]) -> list[Child]:
    """Become rank 0 of a world on this machine, and start the others. They import torch while this process does."""
    place = {"WORLD_SIZE": str(world), **{name: os.environ.get(name, value) for name, value in _LOCAL.items()}}
    started = [
        stack.enter_context(Child.start("swtrace", ["probe", *options], environment={**place, "RANK": str(rank)}))
        for rank in range(1, world)
    ]
    os.environ.update(place, RANK="0")
    return started


def _await(started: Sequence[Child]) -> None:
    """Wait until the ranks have imported torch and are about to meet this one.

    Raises:
        CommandError: one of them ended.
    """
    import torch.distributed  # noqa: F401 (while they do)

    waiting = list(started)
    while waiting:
        wait_for_lines(waiting, _LINE_S)
        waiting = [child for child in waiting if not child.lines()]
        for rank, child in enumerate(started, 1):
            if not child.readable:
                raise CommandError(f"rank {rank} ended before it could be timed", ExitCode.RANK_LOST)


def _measure(
    sizes: Sequence[int], seconds: float, settings: Settings, meet: Path | None, started: Sequence[Child]
) -> Outcome | None:
    """Join the world and measure. Return the outcome on rank 0, and None on all other ranks.

    The ranks meet at a file that the command made, or where their launcher says.

    Raises:
        CommandError: the ranks could not meet, or one was lost.
    """
    import torch
    from torch import distributed as dist

    from swtrace.series import RankGroup
    from swtrace.series.peer_loss import reason
    from swtrace.series.probing.host_copies import HostCopies
    from swtrace.series.probing.probe import Extent, probe

    torch.set_grad_enabled(False)
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    where = "env://" if meet is None else f"file://{meet}"
    if rank and meet is not None:
        data().print(_READY)
    try:
        dist.init_process_group("gloo", init_method=where, rank=rank, world_size=world, timeout=_RENDEZVOUS)
        extent = Extent.up_to(sizes[0], sizes[1:], seconds=seconds)
        with _Shown(extent, world, narration(), quiet=rank != 0) as shown:
            copies = HostCopies.of_rank(extent.sizes[-1])
            outcome = probe(RankGroup.world(), extent, settings, copies=copies, progress=shown)
        dist.destroy_process_group()
    except RuntimeError as error:
        ended = [rank for rank, child in enumerate(started, 1) if child.status is not None]
        who = listed("rank", ended) if ended else "a rank"
        raise CommandError(f"the probe ended because it lost {who}: {reason(error)}", ExitCode.RANK_LOST) from error
    return outcome if rank == 0 else None


class _Shown(ExitStack):
    """Progress on stderr: one line that changes, or a line every few seconds where there is no terminal."""

    def __init__(self, extent: Extent, world: int, console: Console, *, quiet: bool) -> None:
        super().__init__()
        self._seconds = extent.seconds
        self._quiet = quiet
        self._console = console
        self._last = time.monotonic()
        self._status: Any = None
        if quiet:
            return
        text = f"Timing transfers between {counted(world, 'rank')}, for about {extent.seconds:g} s"
        if console.is_terminal:
            self._status = self.enter_context(console.status(text))
        else:
            console.print(text)

    def __call__(self, progress: Progress) -> None:
        """Show how far the probe has got."""
        if self._quiet:
            return
        text = f"{progress.elapsed_s:.0f} of {self._seconds:g} s, round {progress.round}: {progress.kind}"
        if self._status is not None:
            self._status.update(text)
        elif time.monotonic() - self._last >= _LINE_S:
            self._last = time.monotonic()
            self._console.print(text, markup=False, soft_wrap=True)


# ---- the table -------------------------------------------------------------------------------------


def _print(profile: Profile, console: Console) -> None:
    cores, threads = counted(profile.cores, "core"), counted(profile.threads, "thread")
    where = f"{counted(profile.ranks, 'rank')} on {', '.join(profile.hosts)}"
    console.print(f"{where}, {profile.device}, {cores}, {threads} per rank", markup=False, soft_wrap=True)
    console.print()
    shown = table("transport", "size", "at once", "ranks", "median", "p5", "p95", "moved", "stretch")
    last = None
    for timing in sorted(profile.timings, key=lambda each: (each.transport, each.bytes, each.concurrent)):
        if last not in (None, timing.transport):
            shown.add_section()
        last = timing.transport
        shown.add_row(*_row(timing))
    console.print(shown)
    console.print()
    for sentence in _sentences(profile):
        console.print(sentence, markup=False, soft_wrap=True)


def _row(timing: Timing) -> list[str]:
    spread, stretch = timing.seconds, timing.compute_stretch
    return [
        timing.transport,
        units.size(timing.bytes),
        str(timing.concurrent),
        "computing" if timing.computing else "idle",
        *(units.seconds(value) for value in (spread.p50, spread.p5, spread.p95)),
        units.bandwidth(timing.bytes_per_second),
        units.UNKNOWN if stretch is None else f"{stretch.p50:.2f}",
    ]


def _sentences(profile: Profile) -> Iterator[str]:
    """Yield what the planner takes from the profile, and how the directions differ."""
    for family, transport in dict.fromkeys((each.family, each.transport) for each in profile.timings):
        for computing in (False, True):
            line = profile.fixed_and_rate(family, 1, computing)
            if line is not None and len(profile.of(family, 1, computing)) > 1:
                beside = "computing ranks" if computing else "idle ranks"
                yield f"{transport}, one at a time, {beside}: {units.seconds(line[0])} plus {units.bandwidth(line[1])}."
    for transport in dict.fromkeys(each.transport for each in profile.directions):
        ways = [each for each in profile.directions if each.transport == transport]
        slow = max(ways, key=lambda each: each.seconds.p50)
        fast = min(ways, key=lambda each: each.seconds.p50)
        yield (
            f"{transport}, {units.size(slow.bytes)}: slowest from rank {slow.source} to rank {slow.receiver} "
            f"({units.seconds(slow.seconds.p50)}), fastest from rank {fast.source} to rank {fast.receiver} "
            f"({units.seconds(fast.seconds.p50)})."
        )
