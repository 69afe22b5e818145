"""The planner: what sharing a linear under other settings would cost and save, from measured steps of one series.

A prediction is what was measured, plus the difference between two replays of the same steps: one under the candidate's
settings, one under the run's own (:mod:`~swtrace.ledger.planning.replay`). So an error that both replays make cancels.

Its interval has parts that add up as squares: how much the mean of steps varies from run to run; what the planner
missed when it predicted steps that it had not seen; and shares of what it predicts and of how much that changes,
because the model is the less certain the more it changes. The constants are calibrated on runs that were predicted
and then carried out; ``docs/planning.md`` has the figures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from swtrace.ledger.facts import StepFacts
from swtrace.ledger.planning.candidates import UNSHARED
from swtrace.ledger.planning.contention import MOST_CONTENTION, Contention
from swtrace.ledger.planning.prediction import Candidate, Interval, Prediction
from swtrace.ledger.planning.replay import Replayed, Settings, replay
from swtrace.ledger.planning.workload import Workload, consecutive, measure
from swtrace.ledger.rendezvous import RECEIVER, TREE
from swtrace.placement import OWNED, rolling_window_count, source_rank, static_windows
from swtrace.profile import Profile, Timing
from swtrace.share import ALL_LAYERS, Share
from swtrace.trace.identity import BROADCAST, H2D, PULL, SeriesInfo
from swtrace.trace.schema import Clock

_Float = npt.NDArray[np.float64]

FEWEST_STEPS = 8
"""Fewest consecutive steps to plan from."""
MOST_STEPS = 64
"""Newest consecutive steps to plan from; more take longer and say little more."""
HELD_OUT_STEP = 0.1
"""If the step time of held-out steps is missed by more than this share, nothing is predicted ..."""
HELD_OUT_STALL = 0.1
"""... nor if their stall ratio is missed by more than this."""
DRIFT = 0.05
"""Standard deviation of the difference in mean step time between two equal runs of the same minute, as a share ..."""
DRIFT_OF_STALL = {BROADCAST: 0.012, PULL: 0.005}
"""... and that of the stall ratio. Ranks that broadcast wait for each other, so what slows one down stalls all."""
DOUBT = 0.35
"""Standard deviation of a predicted change of step time, as a share of the change."""
DOUBT_OF_STALL = 0.25, 0.06
"""Standard deviation of a predicted stall ratio: shares of the ratio, and of its change."""
DOUBT_OF_PROFILE = 0.5
"""Standard deviation of what transfers take, as a share of it, if the run had none of the kind: the probe's ranks did
not compute what the model computes, so there is another contention."""
_OF_HALVES = 2**-0.5
"""How much less two runs differ than the two halves of one of them."""
_MOVES = {BROADCAST: "broadcast", PULL: "copy"}
NORMAL = 1.645
"""Standard deviations on both sides of a normal distribution's mean that hold 90 % of it."""
OVERHEAD_NS = {BROADCAST: 60_000.0, PULL: 12_000.0}
"""What sharing a layer costs its rank's forward besides stalls, mostly the call that issues a transfer, if no profile
says it: by broadcast with gloo, and by pull, on a server's cores."""


@dataclass(frozen=True, slots=True)
class Baseline:
    """What was measured."""

    candidate: Candidate
    """The settings of the run; share none if its linears were only observed."""
    step_ns: float
    """Mean time of a step, on the rank with the longest."""
    stall_ratio: float
    """Stall as a share of step time, on the most stalled rank."""
    stall_ns: float
    """Mean stall per step of the most stalled rank."""
    memory_bytes: int
    steps: int
    """Steps of each rank that the planner replays."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a candidate would cost."""

    step_ns: Interval
    stall_ratio: Interval
    stall_ns: Interval
    """Mean per step, on the most stalled rank."""
    slack_per_wait_ns: float


@dataclass(frozen=True, slots=True)
class Otherwise:
    """What steps would have taken if something had been different, in ns.

    ``[assumption, step, rank]``: with what is assumed of transfers that move at once, and as if they did not matter.
    """

    measured_ns: _Float
    """``[step, rank]``"""
    replayed_ns: _Float
    """What the replay of the run itself gives."""
    changed_ns: Sequence[_Float | None]
    """For each change, without the errors that the replay of the run itself makes; None if it is unknown."""


Change = Callable[[Workload, Settings], tuple[Workload, Settings] | None]
"""What to change about steps: from what was measured, and the settings of the run, to what to replay."""


@dataclass(frozen=True, slots=True)
class _Means:
    """Means over steps, of all ranks of the group, in ns."""

    step_ns: _Float
    stall_ns: _Float
    slack_per_wait_ns: float

    @classmethod
    def of(cls, parts: Iterable[Replayed]) -> _Means:
        parts = list(parts)
        return cls(
            np.concatenate([part.step_ns.mean(axis=0) for part in parts]),
            np.concatenate([part.stall_ns.mean(axis=0) for part in parts]),
            sum(float(part.slack_ns.sum()) for part in parts) / max(1, sum(part.waits for part in parts)),
        )


class Planner:
    """Predicts the cost of other settings for one series."""

    def __init__(
        self,
        info: SeriesInfo,
        workloads: Sequence[Workload],
        profile: Profile | None,
        scale_compute: float,
        bandwidth: float | None,
    ) -> None:
        """See :meth:`of`."""
        self._info, self._workloads, self._profile, self._scale = info, tuple(workloads), profile, scale_compute
        self._bandwidth = bandwidth
        step = np.concatenate([each.step_ns.mean(axis=0) for each in workloads])
        stall = np.concatenate([each.stall_ns.mean(axis=0) for each in workloads])
        self._step, self._stall = step, stall
        own = _own_settings(info)
        self.measured = Baseline(
            candidate=own,
            step_ns=float(step.max()),
            stall_ratio=float((stall / step).max()),
            stall_ns=float(stall.max()),
            memory_bytes=memory_bytes(info, own),
            steps=min(each.steps for each in workloads),
        )

    @classmethod
    def of(
        cls,
        steps: Sequence[StepFacts],
        profile: Profile | None = None,
        *,
        scale_compute: float = 1.0,
        bandwidth: float | None = None,
    ) -> Planner | None:
        """Calibrate a planner.

        Args:
            steps: Finished steps of one series, oldest first; the newest :data:`MOST_STEPS` of each rank are used.
            profile: How long transfers take, for what the steps do not show.
            scale_compute: Predict for computes that take this many times as long, for example with another batch.
            bandwidth: Predict for transfers that bring this many bytes per second to a rank; None: as measured.

        Returns:
            None if there are fewer than :data:`FEWEST_STEPS` consecutive steps that are complete, with every
            transfer attributed, or if the layers are offloaded: vLLM starts their copies in another order.
        """
        by_rank: dict[int | None, list[StepFacts]] = {}
        for step in steps:
            by_rank.setdefault(step.of_rank, []).append(step)
        found = (consecutive(of_rank, FEWEST_STEPS + 1)[-(MOST_STEPS + 1) :] for of_rank in by_rank.values())
        runs = [run for run in found if len(run) > FEWEST_STEPS]
        infos = [next((info for info in run[0].infos if info is not None), None) for run in runs]
        if not infos or infos[0] is None or infos[0].kind == H2D:
            return None
        info = infos[0]
        overhead = _overhead_ns(info.kind, profile, info.layer_bytes)
        contention = None
        if on_device(info):  # work there does not wait for a core
            contention = _probed_contention(info.kind, profile)
        workloads = [measure(run, info, overhead_ns=overhead, contention=contention) for run in runs]
        return cls(info, workloads, profile, scale_compute, bandwidth)

    # ---- predictions -------------------------------------------------------------------------

    def predict(self, candidate: Candidate) -> Prediction:
        """Predict what a candidate would cost and save; a refusal in words if that is not known."""
        info = self._info
        memory = memory_bytes(info, candidate)
        found = self.forecast(candidate)
        forecast = None if isinstance(found, str) else found
        return Prediction(
            candidate,
            shared_layers=len(self._layers(candidate.share)),
            stack_layers=info.stack_layers,
            memory_bytes=memory,
            saved_bytes=info.stack_layers * info.layer_bytes - memory,
            step_ns=None if forecast is None else forecast.step_ns,
            stall_ratio=None if forecast is None else forecast.stall_ratio,
            refusal=found if isinstance(found, str) else "",
        )

    def forecast(self, candidate: Candidate) -> Forecast | str:
        """Predict what a candidate would cost; or say why that is not known."""
        layers = self._layers(candidate.share)
        refusal = self._refusal(candidate, layers) or self.held_out
        if refusal:
            return refusal
        found = self._replay(candidate, self._scale, self._bandwidth)
        step, ratio = self._corrected(found, layers)
        missed_step, missed_ratio = (missed * _OF_HALVES for missed in self._missed)
        other_step, other_ratio = self._doubts_of_another_transport(candidate, layers, step, ratio)
        change = (step - self.measured.step_ns) / step
        spread = step * _spread(self._noise, DRIFT, missed_step, DOUBT * change, other_step)
        of_ratio, of_change = DOUBT_OF_STALL
        doubts = of_ratio * ratio, of_change * (ratio - self.measured.stall_ratio)
        around = _spread(DRIFT_OF_STALL[candidate.transport], missed_ratio, other_ratio, *doubts) if layers else 0.0
        stall_ratio = Interval(ratio, max(0.0, ratio - around), min(1.0, ratio + around))
        return Forecast(
            step_ns=Interval(step, max(0.0, step - spread), step + spread),
            stall_ratio=stall_ratio,
            stall_ns=stall_ratio.scaled(step),
            slack_per_wait_ns=found.slack_per_wait_ns,
        )

    def _doubts_of_another_transport(
        self, candidate: Candidate, layers: Sequence[int], step: float, ratio: float
    ) -> tuple[float, float]:
        """Return standard deviations of step time, as a share, and stall ratio, if the run had no such transfers."""
        if not layers or candidate.transport == self._info.kind or self._bandwidth is not None:
            return 0.0, 0.0
        longer_step, longer_ratio = self._corrected(
            self._replay(candidate, self._scale, longer=1 + DOUBT_OF_PROFILE), layers
        )
        # Broadcasts make ranks wait for each other. Those that did not wait may differ by what runs differ by.
        apart = DRIFT if candidate.transport == BROADCAST else 0.0
        return longer_step / step - 1, math.hypot(longer_ratio - ratio, apart)

    def _corrected(self, found: _Means, layers: Sequence[int]) -> tuple[float, float]:
        """Return step time and stall ratio of a replay without the errors that the replay of the run itself makes."""
        own = self._replayed_own
        like = np.arange(len(found.step_ns)) % len(own.step_ns)  # in a larger group, ranks are like these in turn
        steps = found.step_ns + (self._step - own.step_ns)[like]
        stall = np.maximum(0.0, found.stall_ns + (self._stall - own.stall_ns)[like]) if layers else np.zeros_like(steps)
        return float(steps.max()), float((stall / steps).max())

    @cached_property
    def _noise(self) -> float:
        """Standard error of the mean step time, as a share of it, from the means of blocks of consecutive steps."""
        errors = []
        for workload in self._workloads:
            longest = workload.step_ns[:, int(workload.step_ns.mean(axis=0).argmax())]
            blocks = np.array([block.mean() for block in np.array_split(longest, min(8, len(longest) // 2))])
            errors.append(float(blocks.std(ddof=1) / np.sqrt(len(blocks)) / longest.mean()))
        return 2**0.5 * max(errors)  # of the run that is predicted, too

    # ---- the same run with something changed -------------------------------------------------

    def otherwise(self, changes: Sequence[Change]) -> Iterator[Otherwise]:
        """Return what the steps would have taken if something had been different, for ranks that run them together.

        How much transfers slow each other down is an assumption (:attr:`Contention.crowding`), which may not hold: they
        are also replayed as if they did not.
        """
        for workload in self._workloads:
            settings = self._settings_for(self.measured.candidate, workload)
            assumed = [settings]
            if np.any(settings.contention.crowding):
                assumed.append(self._settings_for(self.measured.candidate, workload, crowding=0.0))
            changed = [[change(workload, one) for one in assumed] for change in changes]
            known = [made for each in changed for made in each if made is not None]
            variants = [*((workload, one) for one in assumed), *known]
            count, shape = workload.steps, workload.step_ns.shape
            of_each = [of.contention for _, of in variants]
            contention = replace(
                settings.contention,
                compute=np.concatenate([np.broadcast_to(of.compute, shape) for of in of_each]),
                crowding=np.concatenate([np.broadcast_to(of.crowding, count) for of in of_each]),
            )
            found = replay(
                workload.followed_by([each for each, _ in variants[1:]]),
                replace(settings, moving=np.concatenate([of.moving for _, of in variants]), contention=contention),
                runs=len(variants),
            )
            took = iter(np.split(found.step_ns, len(variants)))
            own = np.stack([next(took) for _ in assumed])
            measured = workload.step_ns[-own.shape[1] :]
            replayed = [None if None in each else np.stack([next(took) for _ in each]) for each in changed]
            corrected = [None if each is None else np.maximum(0.0, measured + each - own) for each in replayed]
            yield Otherwise(measured, own, corrected)

    # ---- the guard ---------------------------------------------------------------------------

    @cached_property
    def held_out(self) -> str:
        """Why nothing can be predicted: the planner misses steps of the run that it has not seen; empty if not."""
        step, ratio = self._missed
        if step > HELD_OUT_STEP:
            return (
                f"the model does not fit this run: it misses the step time of steps that it had not seen by {step:.0%}"
            )
        if ratio > HELD_OUT_STALL:
            return (
                "the model does not fit this run: it misses the stall ratio of steps that it had not seen by "
                f"{100 * ratio:.0f} percentage points"
            )
        return ""

    @cached_property
    def _missed(self) -> tuple[float, float]:
        """Predict the second half of the steps with the transfers of the first; return what is missed.

        Step time as a share of it; stall ratio as a difference.
        """
        step = ratio = 0.0
        for workload in self._workloads:
            half = workload.steps // 2
            unseen = workload.part(slice(workload.steps - half, None))
            settings = self._settings_for(self.measured.candidate, workload)
            settings = replace(settings, moving=settings.moving[:half])
            found = replay(unseen, settings)
            truth, stalled = unseen.step_ns.mean(axis=0), unseen.stall_ns.mean(axis=0)
            step = max(step, abs(float(found.step_ns.mean(axis=0).max() / truth.max()) - 1))
            predicted = float((found.stall_ns.mean(axis=0) / found.step_ns.mean(axis=0)).max())
            ratio = max(ratio, abs(predicted - float((stalled / truth).max())))
        return step, ratio

    # ---- replays -----------------------------------------------------------------------------

    @cached_property
    def _replayed_own(self) -> _Means:
        return self._replay(self.measured.candidate)

    def _replay(
        self, candidate: Candidate, scale: float = 1.0, bandwidth: float | None = None, longer: float = 1.0
    ) -> _Means:
        """Replay all steps, with transfers that take ``longer`` times as long."""
        parts = []
        for each in self._workloads:
            workload = each.in_group_of(candidate.ranks)
            settings = self._settings_for(candidate, workload, bandwidth)
            parts.append(replay(workload.scaled(scale), replace(settings, moving=longer * settings.moving)))
        return _Means.of(parts)

    def _settings_for(
        self, candidate: Candidate, workload: Workload, bandwidth: float | None = None, crowding: float | None = None
    ) -> Settings:
        info = self._info
        layers = self._layers(candidate.share)
        source = np.array([source_rank(info.start_layer + p, candidate.ranks) for p in range(len(layers))], np.int64)
        family = candidate.transport
        same = family == info.kind
        contention = self._contention(family, workload)
        if crowding is not None:
            contention = replace(contention, crowding=crowding)
        return Settings(
            shared=layers,
            source=source,
            prefetch_step=candidate.prefetch_step,
            rendezvous=info.rendezvous if same else RECEIVER if family == PULL else TREE,
            queue=info.queue if same else RECEIVER,
            moving=self._moving(family, workload, layers, source, contention, bandwidth),
            overhead_ns=_overhead_ns(family, self._profile, info.layer_bytes),
            contention=contention,
        )

    def _contention(self, family: str, workload: Workload) -> Contention:
        """Return how transfers and computes slow each other down: as measured, or as probed if the run had none."""
        if family == self._info.kind:
            return Contention.like(workload.contention, family, on_device=on_device(self._info))
        compute = np.full(len(workload.ranks), _probed_contention(family, self._profile))
        guess = Contention.like(compute, family, on_device=on_device(self._info))
        nbytes = self._info.layer_bytes
        return Contention(
            compute,
            _probed_stretch(family, self._profile, nbytes, guess.slowdown, computing=True),
            _probed_stretch(family, self._profile, nbytes, float(np.mean(guess.crowding)), concurrent=2),
        )

    def _moving(
        self,
        family: str,
        workload: Workload,
        layers: Sequence[int],
        source: npt.NDArray[np.int64],
        contention: Contention,
        bandwidth: float | None,
    ) -> _Float:
        """Return the time on the channel of each transfer if nothing slows it down.

        That of the nearest layer that the rank received in the same step; from the profile if it received none.
        """
        found = np.full((*workload.step_ns.shape, len(layers)), np.nan)
        measured = workload.moving / contention.stretch(workload.computing, workload.beside)
        for row, rank in enumerate(workload.ranks):
            wanted = np.flatnonzero(source != rank)
            if not wanted.size:
                continue
            if bandwidth is not None:
                found[:, row, wanted] = 1e9 * self._info.layer_bytes / bandwidth
                continue
            if family != self._info.kind:
                drawn = _drawn_ns(family, self._profile, self._info.layer_bytes, (workload.steps, len(wanted)))
                found[:, row, wanted] = drawn
                continue
            received = np.flatnonzero(np.isfinite(measured[:, row]).any(axis=0))
            places = np.asarray(workload.shared)[received]
            nearest = received[np.abs(places - np.asarray(layers)[wanted, np.newaxis]).argmin(axis=1)]
            found[:, row, wanted] = measured[:, row, nearest]
        return found

    def _layers(self, share: Share) -> tuple[int, ...]:
        """Return shared layers, counted from the first of the stack."""
        return tuple(layer - self._info.start_layer for layer in self._info.layers_of(share))

    def _refusal(self, candidate: Candidate, layers: Sequence[int]) -> str:
        """Return why a candidate cannot be predicted from these steps; empty if it can."""
        info = self._info
        if not layers:
            return ""
        if candidate.prefetch_step > len(layers) - 2:
            return (
                f"prefetch step {candidate.prefetch_step} needs at least {candidate.prefetch_step + 2} shared layers, "
                f"not {len(layers)}"
            )
        if (
            candidate.transport != info.kind
            and self._bandwidth is None
            and _timing(candidate.transport, self._profile, 1) is None
        ):
            return (
                f"how long a {_MOVES[candidate.transport]} takes is unknown: pass a profile that `swtrace probe` wrote"
            )
        return ""


def on_device(info: SeriesInfo) -> bool:
    """Return whether transfers and computes are work on a device."""
    return info.clock == Clock.DEVICE.name.lower()


def memory_bytes(info: SeriesInfo, candidate: Candidate) -> int:
    """Return what the rank that holds most holds of the linear: resident layers, its own, and its windows."""
    layers = info.layers_of(candidate.share)
    most = 0
    for rank in range(candidate.ranks if layers else 1):
        owned = frozenset(p for p in range(len(layers)) if source_rank(info.start_layer + p, candidate.ranks) == rank)
        if not layers:
            windows = 0
        elif candidate.windows == "rolling":
            windows = rolling_window_count(candidate.prefetch_step)
        else:
            windows = 1 + max(static_windows(len(layers), candidate.prefetch_step, owned), default=OWNED)
        most = max(most, info.stack_layers - len(layers) + len(owned) + windows)
    return most * info.layer_bytes


def _spread(*parts: float) -> float:
    """Return half of the width of an interval, from the standard deviations of independent parts."""
    return NORMAL * math.hypot(*parts)


def _own_settings(info: SeriesInfo) -> Candidate:
    """Return the settings of the run."""
    whole = len(info.layers) == info.stack_layers
    share = UNSHARED if not info.shared else ALL_LAYERS if whole else Share.of_layers(info.layers)
    return Candidate(
        share, info.prefetch_step, (info.kind if info.shared else BROADCAST), info.windows, len(info.group_ranks)
    )


def _overhead_ns(family: str, profile: Profile | None, layer_bytes: int) -> float:
    timing = _timing(family, profile, layer_bytes)
    return OVERHEAD_NS.get(family, 0.0) if timing is None else 1e9 * timing.issue_seconds.p50


def _timing(family: str, profile: Profile | None, layer_bytes: int) -> Timing | None:
    """Return the profile's timing of single transfers of about a layer's size, while no rank computes."""
    return None if profile is None else profile.nearest(family, 1, layer_bytes, computing=False)


def _probed_contention(family: str, profile: Profile | None) -> float:
    """Return how much transfers slowed compute down while a profile was taken; 0 if it does not say.

    The median of all sizes and concurrencies, because that of one is the small difference of two noisy times. Where the
    probe could not know it, the stretch has no spread.
    """
    found = [each.compute_stretch for each in profile.timings if each.family == family] if profile is not None else []
    known = [stretch.p50 for stretch in found if stretch is not None and stretch.p5 < stretch.p95]
    return min(MOST_CONTENTION[family], max(0.0, float(np.median(known)) - 1)) if known else 0.0


def _probed_stretch(
    family: str, profile: Profile | None, nbytes: int, guess: float, *, concurrent: int = 1, computing: bool = False
) -> float:
    """Return how much longer than alone a transfer took while a profile was taken, as a share; a guess if unknown."""
    alone = None if profile is None else profile.seconds(family, 1, nbytes, computing=False)
    beside = None if profile is None else profile.seconds(family, concurrent, nbytes, computing=computing)
    return guess if alone is None or beside is None else max(0.0, beside / alone - 1)


def _drawn_ns(family: str, profile: Profile | None, layer_bytes: int, shape: tuple[int, ...]) -> _Float:
    """Return times of single transfers in ns, drawn from a profile: its line over sizes, with the nearest spread."""
    timing = _timing(family, profile, layer_bytes)
    seconds = profile.seconds(family, 1, layer_bytes, computing=False) if profile is not None else None
    if timing is None or seconds is None:
        raise ValueError(family)
    spread = timing.seconds
    factors = np.log(np.array([spread.p5, spread.p50, spread.p95]) / spread.p50)
    drawn = np.random.default_rng(0).random(shape)
    return 1e9 * seconds * np.exp(np.interp(drawn, [0.05, 0.5, 0.95], factors))
