"""The planner of layers that vLLM offloads to host memory, see ``docs/offloading.md``.

A measured step is taken apart into the compute of each decoder layer, what comes before the first and after the last,
and the copies. It is replayed with other layers offloaded, and copies that begin at other moments. vLLM makes all
copies on one stream, in the order in which it starts them. When an offloaded layer's forward ends, it starts the copy
of the offloaded layer that :func:`~swtrace.placement.refilled_by` names.

A trace shows when the forward of each offloaded layer begins and ends. Resident layers between two of them are taken to
share the time equally; those before the first and after the last take the mean of all layers in the step. The copy of a
layer that was resident takes what that of the nearest offloaded layer took.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from swtrace.ledger.facts import StepFacts
from swtrace.ledger.planning.planner import FEWEST_STEPS, MOST_STEPS, Assumed, Means, Planner, Times
from swtrace.ledger.planning.prediction import UNSHARED, Candidate, Grouping, Replayed
from swtrace.ledger.planning.replay import WARM_UP
from swtrace.ledger.planning.workload import consecutive
from swtrace.placement import refilled_by, slots_collide
from swtrace.share import Share
from swtrace.trace.identity import H2D, Offload, SeriesInfo

_Float = npt.NDArray[np.float64]

GROUP_SIZES = (1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 24, 32)
"""Decoder layers per group that are worth trying."""
_LARGEST_FILLED = 8
"""In larger groups, only one layer is offloaded."""
_LARGEST_VARIATION = 0.9
"""A layer takes some time, however much others vary."""


@dataclass(frozen=True, slots=True)
class _Measured:
    """Consecutive steps of one rank, in ns. What it computes has no waits in it."""

    head: _Float
    """``[step]``: before the first decoder layer."""
    layers: _Float
    """``[step, layer]``: each decoder layer of the stack."""
    tail: _Float
    """``[step]``: after the last."""
    gap: _Float
    """``[step]``: from its end to the next begin."""
    copies: _Float
    """``[step, position]``: time on the copy stream, of the copies that the step waits for."""
    wake: float
    """What a wait that stalled took beyond its stall, on average."""
    passed: float
    """What a wait that did not stall took."""
    took: Times

    def part(self, steps: slice) -> _Measured:
        """Return some of the steps."""
        arrays = {name: getattr(self, name)[steps] for name in ("head", "layers", "tail", "gap", "copies")}
        return replace(self, **arrays, took=Times(*(each[steps] for each in self.took)))

    def scaled(self, factor: float) -> _Measured:
        """Return the same steps with computes that take ``factor`` times as long."""
        return replace(self, head=self.head * factor, layers=self.layers * factor, tail=self.tail * factor)

    def uneven(self, measured: Sequence[int] | npt.NDArray[np.int64]) -> _Measured:
        """Return the same steps with layers that differ where they are taken to be equal.

        Of the resident ones between two measured ones, each second takes longer by what layers vary, the next less.
        """
        factors = np.ones(self.layers.shape[1])
        varies = min(_LARGEST_VARIATION, _variation(self.layers))
        edges = [-1, *measured, len(factors)]
        for before, after in pairwise(edges):
            pairs = (after - before - 1) // 2
            factors[before + 1 : before + 1 + 2 * pairs] = [1 + varies, 1 - varies] * pairs
        return replace(self, layers=self.layers * factors)


def _variation(values: _Float) -> float:
    """Return by what share the means of columns vary."""
    means = values.mean(axis=0)
    return float(means.std() / means.mean()) if means.mean() else 0.0


class OffloadPlanner(Planner):
    """Predicts what offloading other layers, or copying them earlier, would cost."""

    def __init__(self, info: SeriesInfo, offload: Offload, measured: _Measured, assumed: Assumed) -> None:
        """See :meth:`of`."""
        self._run, self._offload = measured, offload
        self._buffer_bytes = info.window_bytes / info.prefetch_step
        self._places = np.array(info.layers, np.int64) - info.start_layer
        super().__init__(info, own_settings(info), [measured.took], assumed)

    @classmethod
    def of(
        cls, steps: Sequence[StepFacts], *, scale_compute: float = 1.0, bandwidth: float | None = None
    ) -> OffloadPlanner | None:
        """Calibrate a planner; see :func:`~swtrace.ledger.planning.calibrate.calibrate`.

        Returns:
            None if the layers are not offloaded, or there are too few consecutive steps that are complete.
        """
        # The first step shows only when the last copies before it began, the last one only when the next began.
        run = consecutive(steps, FEWEST_STEPS + 2)[-(MOST_STEPS + 2) :]
        info = run[0].infos[0] if run else None
        if info is None or info.offload is None or info.prefetch_step < 1 or len(run) < FEWEST_STEPS + 2:
            return None
        return cls(info, info.offload, _take_apart(run, info), Assumed(scale_compute, bandwidth))

    def memory_bytes(self, candidate: Candidate) -> int:
        """Return what the rank would hold: resident layers, and buffers."""
        info = self._info
        resident = info.stack_layers - len(info.layers_of(candidate.share))
        return resident * info.layer_bytes + round(candidate.prefetch_step * self._buffer_bytes)

    def _refusal(self, candidate: Candidate, layers: Sequence[int]) -> str:
        if not self._offload.pinned:
            return "the host memory is not pinned, so copies block the host, and how long it computes is unknown"
        if not layers:
            return ""
        if self._offload.slots_may_collide and slots_collide(candidate.prefetch_step, len(layers)):
            return (
                "the prefetch step does not divide the number of offloaded layers, and this vLLM lacks the fix "
                "vllm#54975: some layers would run with the weights of another one"
            )
        return "" if candidate == self.measured.candidate else self._unknown(candidate, layers)

    def _unknown(self, candidate: Candidate, layers: Sequence[int]) -> str:
        """Return why other settings than the run's cannot be predicted, or save nothing."""
        own = self.measured.candidate
        named = _grouping(self._offload).share(self._info.start_layer, self._info.stack_layers)
        if candidate.share != own.share != named:
            return (
                "vLLM does not offload every layer that its groups name, so some have none of the weights to offload; "
                "which layers other groups would offload is unknown"
            )
        if candidate.prefetch_step >= len(layers):
            return (
                f"prefetch step {candidate.prefetch_step} takes as many buffers as layers are offloaded or more: it "
                "saves nothing"
            )
        return ""

    def _replay(self, candidate: Candidate, assumed: Assumed) -> Means:
        return Means.of([self._replayed(self._run, candidate, assumed)])

    def _variants(self, candidate: Candidate, layers: Sequence[int]) -> Iterator[Means]:
        """Layers that stayed resident differ from what is assumed about them by what all layers differ by."""
        unseen = ~np.isin(layers, self._places)
        if unseen.any():
            longer = np.where(unseen, 1 + _variation(self._run.copies), 1.0)
            yield Means.of([self._replayed(self._run, candidate, replace(self._assumed, longer=longer))])
        if candidate.share != self.measured.candidate.share:
            yield Means.of([self._replayed(self._run.uneven(self._places), candidate, self._assumed)])

    def _halves(self) -> Iterable[tuple[Replayed, Times]]:
        half = len(self._run.head) // 2
        unseen = self._run.part(slice(-half, None))
        found = self._replayed(replace(unseen, copies=self._run.copies[:half]), self.measured.candidate, Assumed())
        return [(found, unseen.took)]

    def _replayed(self, run: _Measured, candidate: Candidate, assumed: Assumed) -> Replayed:
        """Replay the steps. What the copies are doing when they begin comes from replays of the first one."""
        places = self._layers(candidate.share)
        nearest = [int(np.abs(self._places - place).argmin()) for place in places]
        copies = run.copies[:, nearest]
        if assumed.bandwidth is not None:
            copies = np.full_like(copies, 1e9 * self._info.layer_bytes / assumed.bandwidth)
        rows = np.concatenate((np.zeros(WARM_UP, np.int64), np.arange(len(copies))))
        scaled, copies = run.scaled(assumed.scale_compute), assumed.longer * copies
        took = list(_steps(scaled, rows, places, copies, candidate.prefetch_step))[WARM_UP:]
        step, stall, slack = np.array(took).T[..., np.newaxis]
        return Replayed(step, stall, slack, waits=len(took) * len(places))


def own_settings(info: SeriesInfo) -> Candidate:
    """Return the settings of a run that offloads.

    Raises:
        ValueError: it does not.
    """
    if info.offload is None:
        raise ValueError(info.kind)
    share = Share.of_selected(info.layers, info.stack_layers)
    return Candidate(share, info.prefetch_step, H2D, info.windows, 1, _grouping(info.offload))


def _grouping(offload: Offload) -> Grouping:
    return Grouping(offload.group_size, offload.num_in_group, offload.params)


def candidates(info: SeriesInfo, prefetch_steps: Sequence[int]) -> Iterator[Candidate]:
    """Yield what is worth trying: every share of the layers in its most even spacing, and no offloading.

    Offloading 2 of 4 layers is left out, for example, because 1 of 2 spreads the same copies evenly. A prefetch step
    must be below the number of offloaded layers.
    """
    own, seen = own_settings(info), set()
    params = own.grouping.params if own.grouping is not None else ()
    groupings = [
        Grouping(size, count, params)
        for size in GROUP_SIZES
        for count in range(1, max(2, size) if size <= _LARGEST_FILLED else 2)
        if np.gcd(size, count) == 1
    ]
    named = [(each.share(info.start_layer, info.stack_layers), each) for each in groupings]
    for share, grouping in [(own.share, own.grouping), *named]:
        layers = info.layers_of(share)
        if not layers or layers in seen:
            continue
        seen.add(layers)
        for k in prefetch_steps:
            if k < len(layers):
                yield Candidate(share, k, H2D, own.windows, 1, grouping)
    yield Candidate(UNSHARED, 0, H2D, own.windows, 1)


def _steps(
    run: _Measured, rows: npt.NDArray[np.int64], places: Sequence[int], copies: _Float, prefetch_step: int
) -> Iterator[tuple[float, float, float]]:
    """Yield step time, stall and slack of each of these steps, one after the other, with other layers offloaded."""
    count = len(places)
    after = [refilled_by(position, prefetch_step, count) for position in range(count)]
    edges = [*places, run.layers.shape[1]]
    sums = np.pad(run.layers.cumsum(axis=1), ((0, 0), (1, 0)))
    before = np.diff(sums[:, edges], axis=1, prepend=0) - np.pad(run.layers[:, list(places)], ((0, 0), (1, 0)))
    before[:, 0] += run.head
    before[:, -1] += run.tail
    computes, resident, copying = run.layers[:, list(places)].tolist(), before.tolist(), copies.tolist()
    ready = [-np.inf] * count
    free = now = 0.0
    for step, then in zip(rows, [*rows[1:], rows[-1]], strict=True):
        begin, stall, slack = now, 0.0, 0.0
        for position in range(count):
            now += resident[step][position]
            late = ready[position] - now
            if late > 0:
                stall += late
                now = ready[position] + run.wake
            else:
                slack -= late
                now += run.passed
            now += computes[step][position]
            following = after[position]
            free = max(now, free) + copying[step if following > position else then][following]
            ready[following] = free
        now += resident[step][count]
        yield now - begin, stall, slack
        now += run.gap[step]


def _take_apart(run: Sequence[StepFacts], info: SeriesInfo) -> _Measured:
    """Take consecutive steps apart. The first and the last are there for the copies that they share with others."""

    def stacked(name: str) -> _Float:
        return np.stack([np.asarray(getattr(step, name))[0] for step in run]).astype(np.float64)

    wait_begin, wait_end, issued, reach = map(stacked, ("wait_begin_ns", "wait_end_ns", "issued_ns", "reach_position"))
    begin, end, stall, wake = map(stacked, ("begin_ns", "end_ns", "stall_ns", "wake_ns"))
    count, stack = len(info.layers), info.stack_layers
    places = np.array(info.layers, np.int64) - info.start_layer

    # A copy starts when the forward of another layer has ended: in the step that waits for it, or in the one before.
    forward_end = np.full_like(issued, np.nan)
    for position in range(count):
        issuer = reach[:, position].astype(np.int64)
        of = np.arange(len(run)) - (issuer >= position)
        forward_end[of[of >= 0], issuer[of >= 0]] = issued[of >= 0, position]
    forward_end = np.where(np.isnan(forward_end), wait_end, forward_end)

    inner = slice(1, -1)
    layers = np.full((len(run), stack), np.nan)
    layers[:, places] = forward_end - wait_end
    for position in range(count - 1):
        first, last = places[position] + 1, places[position + 1]
        between = (wait_begin[:, position + 1] - forward_end[:, position])[:, np.newaxis]
        if first < last:
            layers[:, first:last] = between / (last - first)
        else:
            layers[:, [last]] += between
    typical = np.nanmean(layers, axis=1)
    head, tail = wait_begin[:, 0] - begin, end - forward_end[:, -1]
    for edge, resident in ((head, slice(0, places[0])), (tail, slice(places[-1] + 1, stack))):
        of_edge = resident.stop - resident.start
        each = np.minimum(typical, edge / max(1, of_edge))
        layers[:, resident] = each[:, np.newaxis]
        np.subtract(edge, each * of_edge, out=edge)
    stalled = stall[inner] > 0
    waited = (wait_end - wait_begin)[inner]
    return _Measured(
        head=head[inner],
        layers=layers[inner],
        tail=tail[inner],
        gap=begin[2:] - end[1:-1],
        copies=stacked("transfer_ns")[inner],
        wake=float(wake[inner][stalled].mean()) if stalled.any() else 0.0,
        passed=float(waited[~stalled].mean()) if not stalled.all() else 0.0,
        took=Times((end - begin)[inner, np.newaxis], stall[inner].sum(axis=1)[:, np.newaxis]),
    )
