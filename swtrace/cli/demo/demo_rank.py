"""One rank of the demo: registers its layers as a series, runs steps, and checks every output."""

from __future__ import annotations

import ctypes
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

from swtrace.cli.demo.faults import Injector, Place
from swtrace.cli.demo.model import COLUMNS, Check, build, expect, following
from swtrace.cli.demo.report_lines import RankReport, What
from swtrace.cli.demo.scenarios import Transport
from swtrace.cli.exit_codes import ExitCode, exit_code
from swtrace.errors import SwtraceError
from swtrace.settings import Settings
from swtrace.share import ALL_LAYERS, Share

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from swtrace.cli.demo.lost_ranks import LostRanks
    from swtrace.cli.demo.scenarios import Dials
    from swtrace.series import RankGroup, Series

SERIES = "demo.linear"
_AGREE_EVERY = 4
"""Ranks that broadcast agree once every so many steps on whether to continue."""
_PR_SET_TIMERSLACK = 29
_TIMERSLACK_NS = 1000
"""The default of 50 us would lengthen every layer's compute by about 100 us."""
_RENDEZVOUS = timedelta(seconds=120)
_NOTICE_S = 1.0
"""How long the launcher may take to notice that a rank was lost."""


class OutputDiffersError(SwtraceError):
    """A layer's output differs from that of its true weight."""


def run_rank(dials: Dials, rank: int, rendezvous: Path, lost: LostRanks) -> ExitCode:
    """Run as rank ``rank`` until all steps are done. Report errors as events; return the exit status."""
    import torch.distributed as dist

    from swtrace.cli.demo.lost_ranks import OWN_ERROR_S, START_UP_S
    from swtrace.series import RankGroup, recording

    try:
        patience_s = START_UP_S if dials.transport is Transport.PULL else OWN_ERROR_S
        with lost.ending_if_stuck(rank, lambda: _give_up(dials, rank), patience_s):
            _prepare_process()
            if dials.transport is Transport.PULL:
                steps, checked = _run(dials, rank, RankGroup(tuple(range(dials.ranks)), rank))
            else:
                dist.init_process_group(
                    "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=dials.ranks, timeout=_RENDEZVOUS
                )
                steps, checked = _run(dials, rank, RankGroup.world())
                dist.destroy_process_group()
    except SwtraceError as error:
        RankReport(What.FAILED, rank, text=str(error)).write()
        return ExitCode.OUTPUT_DIFFERS if isinstance(error, OutputDiffersError) else exit_code(error)
    except RuntimeError as error:
        if dials.transport is Transport.PULL:
            raise
        # Before the series exists, calls of torch.distributed such as the rendezvous fail with plain RuntimeErrors.
        who = f"{_give_up(dials, rank)}: {lost}; " if lost.wait(_NOTICE_S) else ""
        RankReport(What.FAILED, rank, text=f"{who}torch.distributed failed: {str(error).splitlines()[0]}").write()
        return ExitCode.RANK_LOST if who else ExitCode.FAILED
    finally:
        recording.close()
    RankReport(What.FINISHED, rank, steps=steps, checked=checked).write()
    return ExitCode.SUCCESS


def _give_up(dials: Dials, rank: int) -> str:
    """End the part of this rank; return how far it has come, or nothing if it goes on without the others."""
    from swtrace.series import presence
    from swtrace.series.operations import numbered
    from swtrace.series.peer_loss import BEFORE_STEPS

    for series in numbered():
        if dials.transport is Transport.PULL and series.post_processed:
            return ""
        presence.give_up()
        return series.place
    return f"rank {rank}, {BEFORE_STEPS}"


def _prepare_process() -> None:
    import torch

    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, _TIMERSLACK_NS, 0, 0, 0)


def _run(dials: Dials, rank: int, group: RankGroup) -> tuple[int, int]:
    from swtrace.series import Series
    from swtrace.series.recording import describe_model, process_recorder

    describe_model(f"demo of {dials.layers} linears")
    check = expect(dials)
    series = Series(
        SERIES,
        group,
        0,
        dials.layers,
        layers=dials.shared,
        prefetch_step=dials.prefetch_step,
        windows=dials.windows.value,
        recorder=process_recorder,
        time_every=1,
        settings=replace(
            Settings.from_environment(),
            transport=dials.transport.value,
            share=Share.parse(dials.share) if dials.observes else ALL_LAYERS,
        ),
    )
    layers = []
    for layer in range(dials.layers):
        layers.append(build(dials, layer))
        series.register(layer, layers[-1])
    series.post_process()
    with Injector(dials, rank) as injector, _together(dials, series):
        RankReport(What.READY, rank).write()
        step = _run_steps(dials, rank, series, layers, check, injector)
    series.close()
    return step, step * dials.layers


@contextmanager
def _together(dials: Dials, series: Series) -> Iterator[None]:
    """Let ranks that broadcast begin and end together."""
    if dials.transport is Transport.PULL:
        yield
        return
    import torch.distributed as dist

    with series.naming_dead_peers():
        dist.barrier()
    yield
    # A rank that exits closes its connections, and the others may still be receiving data of the last step.
    with series.naming_dead_peers():
        dist.barrier()


def _run_steps(
    dials: Dials, rank: int, series: Series, layers: list[nn.Linear], check: Check, injector: Injector
) -> int:
    """Run steps until it is time to stop; return the number of steps."""
    random_source = random.Random(f"{dials.seed}-{rank}")  # noqa: S311 (a demo's jitter, no secret)
    begin, step = time.monotonic(), 0
    injector.start()
    while _continues(dials, series, rank, step, begin, injector):
        injector.at(Place.ENTRY, step)
        _run_step(dials, rank, step, series, layers, check, random_source, injector)
        step += 1
    return step


def _run_step(
    dials: Dials,
    rank: int,
    step: int,
    series: Series,
    layers: list[nn.Linear],
    check: Check,
    random_source: random.Random,
    injector: Injector,
) -> None:
    import torch

    variant, shared = step % len(check.inputs), series.info.layers
    activation, expected = check.inputs[variant], check.outputs[variant]
    with series.step(tokens=1, requests=1):
        for layer, linear in enumerate(layers):
            series.reach(layer)
            # The linear would wait anyway; waiting here times its compute from when the weight is ready.
            if layer in shared:
                series.wait(layer)
            begin_ns = time.monotonic_ns()
            output = linear(activation)
            if not torch.equal(output, expected[layer]):
                raise OutputDiffersError(
                    f"series {SERIES}, layer {layer}, rank {rank}, step {step}: the output differs from that "
                    "of unshared weights"
                )
            activation = following(output)
            _compute(begin_ns + dials.compute_ns(random_source) - time.monotonic_ns(), awake=injector.awake)
            injector.at(Place.COMPUTE, step, layer)


def _compute(left_ns: int, *, awake: bool) -> None:
    """Spend the rest of a layer's compute: asleep, or ``awake`` on a core, without the GIL for most of it."""
    import torch

    if not awake:
        time.sleep(max(0, left_ns) * 1e-9)
        return
    vector, end_ns = torch.ones(COLUMNS), time.thread_time_ns() + left_ns
    while time.thread_time_ns() < end_ns:
        torch.outer(vector, vector)


def _continues(dials: Dials, series: Series, rank: int, step: int, begin_s: float, injector: Injector) -> bool:
    """Return whether to run another step.

    With a duration, rank 0 decides for all ranks that broadcast, because they must run the same number of steps.
    """
    if dials.steps is not None:
        return step < dials.steps
    if dials.transport is Transport.PULL:
        return time.monotonic() - begin_s < dials.seconds
    if step % _AGREE_EVERY:
        return True
    import torch
    import torch.distributed as dist

    injector.at(Place.COLLECTIVE, step)
    go_on = torch.tensor([rank == 0 and time.monotonic() - begin_s < dials.seconds], dtype=torch.uint8)
    with series.naming_dead_peers():
        dist.all_reduce(go_on, dist.ReduceOp.MAX)
    return bool(go_on.item())
