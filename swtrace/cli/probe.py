"""``swtrace probe``: time what moves layers between ranks, and write a profile for the planner."""

from __future__ import annotations

import importlib.util
import os
import socket
import time
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from swtrace import units
from swtrace.cli.arguments import Force, file_option, number, refuse_existing, whole_number
from swtrace.cli.child import Child
from swtrace.cli.console import data, narration, table, write_json
from swtrace.cli.exit_codes import CommandError, ExitCode
from swtrace.cli.recorded import size
from swtrace.cli.signals import exit_in_order
from swtrace.settings import Settings
from swtrace.units import counted

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import Console

    from swtrace.profile import Profile, Timing
    from swtrace.series.probe import Extent, Outcome, Progress

_RANKS = 2
_MAX_RANKS = 64
_LARGEST = "16M"
_RENDEZVOUS = timedelta(seconds=120)
_LINE_S = 5.0
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
) -> None:
    """Time the transfers between ranks, by broadcast and by pull, and write a profile for `swtrace plan`.

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
    launched = "RANK" in os.environ and "WORLD_SIZE" in os.environ
    if launched and ranks is not None:
        raise CommandError(
            f"--ranks cannot be used where a launcher has started the ranks (WORLD_SIZE={os.environ['WORLD_SIZE']})",
            ExitCode.USAGE,
        )
    exit_in_order()
    settings = Settings.from_environment()
    with ExitStack() as stack:
        store = None
        if not launched:
            options = ["--largest", largest, *(word for each in exact or () for word in ("--bytes", each))]
            store = stack.enter_context(_LocalRanks(ranks or _RANKS, [*options, "--seconds", str(seconds)]))
        outcome = _measure(sizes, seconds, settings, store)
    if outcome is None:
        return
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


class _LocalRanks(ExitStack):
    """Ranks 1 and up of a world on this machine. This process is rank 0 and hosts the store where they meet."""

    def __init__(self, world: int, options: Sequence[str]) -> None:
        """Start them. They import torch while this process does."""
        super().__init__()
        self.world = world
        self.listener = self.enter_context(socket.create_server(("127.0.0.1", 0)))
        for name, value in _LOCAL.items():
            os.environ.setdefault(name, value)
        for rank in range(1, world):
            environment = {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(world),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(self.listener.getsockname()[1]),
            }
            self.enter_context(Child.start("swtrace", ["probe", *options], environment=environment))


def _measure(sizes: Sequence[int], seconds: float, settings: Settings, local: _LocalRanks | None) -> Outcome | None:
    """Join the world and measure. Return the outcome on rank 0, and None on all other ranks.

    Raises:
        CommandError: the ranks could not meet, or one was lost.
    """
    import torch
    from torch import distributed as dist

    from swtrace.series import RankGroup
    from swtrace.series.peer_loss import reason
    from swtrace.series.probe import Extent, probe

    torch.set_grad_enabled(False)
    if local is not None:
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    try:
        _join(local)
        rank, world = dist.get_rank(), dist.get_world_size()
        if world == 1:
            raise CommandError("a world of one rank has nothing to transfer; start at least two", ExitCode.USAGE)
        extent = Extent.up_to(sizes[0], sizes[1:], seconds=seconds)
        with _Shown(extent, world, narration(), quiet=rank != 0) as shown:
            outcome = probe(RankGroup.world(), extent, settings, progress=shown)
        dist.destroy_process_group()
    except RuntimeError as error:
        raise CommandError(f"the probe ended because a rank was lost: {reason(error)}", ExitCode.RANK_LOST) from error
    return outcome if rank == 0 else None


def _join(local: _LocalRanks | None) -> None:
    from torch import distributed as dist

    if local is None:
        dist.init_process_group("gloo", timeout=_RENDEZVOUS)
        return
    host, port = local.listener.getsockname()
    store = dist.TCPStore(
        host, port, local.world, is_master=True, wait_for_workers=False, master_listen_fd=local.listener.detach()
    )
    dist.init_process_group("gloo", store=store, rank=0, world_size=local.world, timeout=_RENDEZVOUS)


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
    where = f"{counted(profile.ranks, 'rank')} on {', '.join(profile.hosts)}, {profile.device}"
    console.print(
        f"{where}, {counted(profile.cores, 'core')}, {counted(profile.threads, 'thread')} per rank", markup=False
    )
    console.print()
    shown = table("transport", "size", "at once", "median", "p5 to p95", "moved", "computing", "p5 to p95", "stretch")
    idle = [each for each in profile.timings if not each.computing]
    computing = {(each.transport, each.bytes, each.concurrent): each for each in profile.timings if each.computing}
    last = None
    for timing in sorted(idle, key=lambda each: (each.transport, each.bytes, each.concurrent)):
        if last is not None and last != timing.transport:
            shown.add_section()
        last = timing.transport
        shown.add_row(*_row(timing, computing.get((timing.transport, timing.bytes, timing.concurrent))))
    console.print(shown)
    console.print()
    for sentence in _sentences(profile):
        console.print(sentence, markup=False, soft_wrap=True)


def _row(idle: Timing, computing: Timing | None) -> list[str]:
    row = [idle.transport, units.size(idle.bytes), str(idle.concurrent), units.seconds(idle.seconds.p50)]
    row += [_range(idle), units.bandwidth(idle.bytes_per_second)]
    if computing is None or computing.compute_stretch is None:
        return [*row, units.UNKNOWN, units.UNKNOWN, units.UNKNOWN]
    return [*row, units.seconds(computing.seconds.p50), _range(computing), f"{computing.compute_stretch.p50:.2f}"]


def _range(timing: Timing) -> str:
    return f"{units.seconds(timing.seconds.p5)} to {units.seconds(timing.seconds.p95)}"


def _sentences(profile: Profile) -> Iterator[str]:
    """Yield what the planner takes from the profile, and how the directions differ."""
    for family, transport in dict.fromkeys((each.family, each.transport) for each in profile.timings):
        for computing in (False, True):
            line = profile.fixed_and_rate(family, 1, computing)
            if line is not None:
                beside = "while the ranks compute" if computing else "alone"
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
