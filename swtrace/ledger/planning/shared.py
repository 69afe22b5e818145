"""The planner of shared layers, which come from another rank by broadcast or pull.

It replays the steps with :mod:`~swtrace.ledger.planning.replay`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from swtrace.ledger.facts import StepFacts
from swtrace.ledger.planning.contention import MOST_CONTENTION, Contention
from swtrace.ledger.planning.planner import FEWEST_STEPS, MOST_STEPS, Assumed, Means, Planner, Times
from swtrace.ledger.planning.prediction import UNSHARED, Candidate, Replayed
from swtrace.ledger.planning.replay import Settings, replay
from swtrace.ledger.planning.workload import Workload, consecutive, measure
from swtrace.ledger.rendezvous import RECEIVER, TREE
from swtrace.placement import OWNED, rolling_window_count, source_rank, static_windows
from swtrace.profile import Profile, Timing
from swtrace.share import Share
from swtrace.trace.identity import BROADCAST, PULL, SeriesInfo
from swtrace.trace.schema import Clock

_Float = npt.NDArray[np.float64]

DOUBT_OF_PROFILE = 0.5
"""Standard deviation of what transfers take, as a share of it, if the run had none of the kind: the probe's ranks did
not compute what the model computes, so there is another contention."""
_MOVES = {BROADCAST: "broadcast", PULL: "copy"}
OVERHEAD_NS = {BROADCAST: 60_000.0, PULL: 12_000.0}
"""What sharing a layer costs its rank's forward besides stalls, mostly the call that issues a transfer, if no profile
says it: by broadcast with gloo, and by pull, on a server's cores."""


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


class SharedPlanner(Planner):
    """Predicts what sharing other layers, or sharing them in another way, would cost."""

    def __init__(
        self,
        info: SeriesInfo,
        workloads: Sequence[Workload],
        profile: Profile | None,
        assumed: Assumed,
    ) -> None:
        """See :meth:`of`."""
        self._workloads, self._profile = tuple(workloads), profile
        took = [Times(each.step_ns, each.stall_ns) for each in workloads]
        super().__init__(info, _own_settings(info), took, assumed)

    @classmethod
    def of(
        cls,
        steps: Sequence[StepFacts],
        profile: Profile | None = None,
        *,
        scale_compute: float = 1.0,
        bandwidth: float | None = None,
    ) -> SharedPlanner | None:
        """Calibrate a planner.

        Args:
            steps: Finished steps of one series, oldest first; the newest :data:`MOST_STEPS` of each rank are used.
            profile: How long transfers take, for what the steps do not show.
            scale_compute: Predict for computes that take this many times as long, for example with another batch.
            bandwidth: Predict for transfers that bring this many bytes per second to a rank; None: as measured.

        Returns:
            None if there are fewer than :data:`FEWEST_STEPS` consecutive steps that are complete, with every
            transfer attributed, or if the layers are offloaded and not shared.
        """
        by_rank: dict[int | None, list[StepFacts]] = {}
        for step in steps:
            by_rank.setdefault(step.of_rank, []).append(step)
        found = (consecutive(of_rank, FEWEST_STEPS + 1)[-(MOST_STEPS + 1) :] for of_rank in by_rank.values())
        runs = [run for run in found if len(run) > FEWEST_STEPS]
        infos = [next((info for info in run[0].infos if info is not None), None) for run in runs]
        if not infos or infos[0] is None or infos[0].offloaded:
            return None
        info = infos[0]
        overhead = _overhead_ns(info.kind, profile, info.layer_bytes)
        contention = None
        if on_device(info):  # work there does not wait for a core
            contention = _probed_contention(info.kind, profile)
        workloads = [measure(run, info, overhead_ns=overhead, contention=contention) for run in runs]
        return cls(info, workloads, profile, Assumed(scale_compute, bandwidth))

    def memory_bytes(self, candidate: Candidate) -> int:
        """Return what the rank that holds most would hold: resident layers, its own, and its windows."""
        info = self._info
        layers = info.layers_of(candidate.share)
        most = 0
        for rank in range(candidate.ranks if layers else 1):
            owned = frozenset(
                p for p in range(len(layers)) if source_rank(info.start_layer + p, candidate.ranks) == rank
            )
            if not layers:
                windows = 0
            elif candidate.windows == "rolling":
                windows = rolling_window_count(candidate.prefetch_step)
            else:
                windows = 1 + max(static_windows(len(layers), candidate.prefetch_step, owned), default=OWNED)
            most = max(most, info.stack_layers - len(layers) + len(owned) + windows)
        return most * info.layer_bytes

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
            and self._assumed.bandwidth is None
            and _timing(candidate.transport, self._profile, 1) is None
        ):
            return (
                f"how long a {_MOVES[candidate.transport]} takes is unknown: pass a profile that `swtrace probe` wrote"
            )
        return ""

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

    # ---- replays -----------------------------------------------------------------------------

    def _replay(self, candidate: Candidate, assumed: Assumed) -> Means:
        parts = []
        for each in self._workloads:
            workload = each.in_group_of(candidate.ranks)
            settings = self._settings_for(candidate, workload, assumed.bandwidth)
            moving = assumed.longer * settings.moving
            parts.append(replay(workload.scaled(assumed.scale_compute), replace(settings, moving=moving)))
        return Means.of(parts)

    def _variants(self, candidate: Candidate, layers: Sequence[int]) -> Iterator[Means]:
        del layers
        if candidate.transport != self._info.kind and self._assumed.bandwidth is None:
            yield self._replay(candidate, replace(self._assumed, longer=1 + DOUBT_OF_PROFILE))

    def _halves(self) -> Iterator[tuple[Replayed, Times]]:
        for workload in self._workloads:
            half = workload.steps // 2
            unseen = workload.part(slice(workload.steps - half, None))
            settings = self._settings_for(self.measured.candidate, workload)
            yield (
                replay(unseen, replace(settings, moving=settings.moving[:half])),
                Times(unseen.step_ns, unseen.stall_ns),
            )

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


def on_device(info: SeriesInfo) -> bool:
    """Return whether transfers and computes are work on a device."""
    return info.clock == Clock.DEVICE.name.lower()


def _own_settings(info: SeriesInfo) -> Candidate:
    """Return the settings of the run."""
    share = Share.of_selected(info.layers, info.stack_layers) if info.shared else UNSHARED
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
