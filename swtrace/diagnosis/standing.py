"""What each rank is doing now, and whom it waits for, from the marks in its ring.

A rank's host *waits* while a broadcast of a series blocks it, and is *in a collective* that no series issued while its
mark says so. Otherwise it *computes* while it is in a step, or is *idle* between two steps. Ages are by the rank's own
clock, as of the moment at which its ring was read.

Series on simulated time have no ages, so they are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from swtrace import units
from swtrace.ledger.facts import SeriesFacts, SeriesKey
from swtrace.observing.observation import ObservedRank, series_key
from swtrace.trace.identity import RankKey, SeriesInfo
from swtrace.trace.marks import Progress
from swtrace.trace.schema import Collective, Stage


class Doing(StrEnum):
    """What a rank's host does."""

    IDLE = "idle"
    COMPUTING = "computing"
    WAITING = "waiting"
    IN_COLLECTIVE = "in a collective"
    GONE = "gone"
    """Its process has ended, or has announced that it ends."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What one rank is doing."""

    rank: ObservedRank
    doing: Doing
    info: SeriesInfo
    """The series in which it stands: of several, the one that it waits for or was in last."""
    progress: Progress
    """In that series."""
    age_ns: int
    """How long it has done nothing else."""
    collective: Collective | None

    @property
    def key(self) -> RankKey:
        """The rank."""
        return self.rank.key

    @property
    def series(self) -> SeriesKey:
        """The key of that series."""
        return series_key(self.key, self.info)

    @property
    def waits(self) -> bool:
        """Whether it waits for other ranks."""
        return self.doing in {Doing.WAITING, Doing.IN_COLLECTIVE}

    @property
    def in_step(self) -> bool:
        """Whether it is in a step. One whose end is not marked counts as ended after its last layer was reached."""
        if self.doing in {Doing.IDLE, Doing.GONE} or not self.progress.in_step:
            return False
        return not (self.progress.stage is Stage.UNMARKED and self._reached_all)

    @property
    def _reached_all(self) -> bool:
        return self.progress.issued % self.info.num_layers == 0

    @property
    def behind(self) -> int:
        """How many of the steps that a host has launched its device has not completed; 0 if there is no device."""
        launched = self.progress.issued // self.info.num_layers
        return max(0, launched - self.progress.completed) if self.progress.completed_ns else 0

    @property
    def device_age_ns(self) -> int:
        """How long a device that is behind has completed no step."""
        return max(0, self.rank.ring.taken_ns - self.progress.completed_ns)

    @property
    def step(self) -> int:
        """The step that it is in, or runs next."""
        issued, layers = self.progress.issued, self.info.num_layers
        if self.awaited is not None:
            return (self.awaited + self.info.prefetch_step) // layers
        after_last = self._reached_all and self.in_step and self.progress.stage is not Stage.BEGUN
        return max(0, issued - after_last) // layers

    @property
    def awaited(self) -> int | None:
        """Number of the broadcast that it waits for: the last one that it issued for that layer."""
        position, issued = self.progress.waiting, self.progress.issued
        if self.doing is not Doing.WAITING or not issued:
            return None
        return issued - 1 - (issued - 1 - (position - self.info.prefetch_step)) % self.info.num_layers

    @property
    def layer(self) -> int | None:
        """The layer that it waits for, or else reached last in its step; None before the first."""
        if self.doing is Doing.WAITING:
            return self.info.layers[self.progress.waiting]
        if not self.progress.issued or self.progress.stage is Stage.BEGUN or (self._reached_all and not self.in_step):
            return None
        return self.info.layers[(self.progress.issued - 1) % self.info.num_layers]

    @property
    def source(self) -> int | None:
        """The global rank from which it waits for a layer; None also if the layer comes from host memory."""
        waiting = self.doing is Doing.WAITING and self.info.from_ranks
        return self.info.group_ranks[self.info.source(self.progress.waiting)] if waiting else None

    @property
    def place(self) -> str:
        """Where it is in its step, for a sentence: ``after layer 17 of step 4,210``."""
        layer = self.layer
        where = "before the first layer" if layer is None else f"after layer {layer}"
        return f"{where} of step {self.step:,}"

    @property
    def activity(self) -> str:
        """What it does, to follow ``is`` in a sentence."""
        match self.doing:
            case Doing.WAITING if self.source == self.key.rank:
                return f"waiting until its own broadcast of layer {self.layer} has been sent"
            case Doing.WAITING:
                source = self.info.terms.source if self.source is None else f"rank {self.source}"
                return f"waiting for layer {self.layer} of step {self.step:,} from {source}"
            case Doing.IN_COLLECTIVE:
                where = f", {self.place}" if self.in_step else " between two steps"
                return f"in {collective_words(self.collective)} outside the series{where}"
            case Doing.COMPUTING:
                return f"in its own compute {self.place}"
            case Doing.IDLE:
                return f"between two steps; it has not begun step {self.step:,}"
            case Doing.GONE:
                return "ending"

    def issued(self, info: SeriesInfo) -> int | None:
        """Return how many broadcasts of a series this rank has issued; None if it is not in that series."""
        entries = _entries(self.rank)
        wanted = series_key(self.key, info)
        return next((progress.issued for mine, progress in entries if series_key(self.key, mine) == wanted), None)

    def since_unix_ns(self, age_ns: int) -> int:
        """Return the UNIX time that was ``age_ns`` before the rank's ring was read; 0 if unknown."""
        offset_ns = self.rank.unix_offset_ns
        return self.rank.ring.taken_ns - age_ns + offset_ns if offset_ns else 0


def collective_words(kind: Collective | None) -> str:
    """Return a collective with its article: ``an all-reduce``."""
    if kind is None or kind is Collective.OTHER:
        return "a collective"
    name = kind.name.lower().replace("_", "-")
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def standing(rank: ObservedRank, *, before_its_end: bool = False) -> Standing | None:
    """Return what a rank is doing; None if its ring does not show it.

    Args:
        rank: The rank.
        before_its_end: Of a rank that is gone, return what it was doing last.
    """
    entries = [(info, progress) for info, progress in _entries(rank) if info.clock != "virtual"]
    if not entries:
        return None
    now_ns, marks = rank.ring.taken_ns, rank.ring.marks
    waiting = [each for each in entries if each[1].waiting >= 0]
    in_step = [each for each in entries if each[1].in_step]
    info, progress = max(waiting or in_step or entries, key=_last_ns)
    since_ns = max(marks.collective_ns, *(each.since_ns for _, each in entries))
    if not before_its_end and (rank.ring.closed or not rank.ring.alive):
        doing = Doing.GONE
    elif waiting:
        doing, since_ns = Doing.WAITING, progress.waiting_since_ns
    elif marks.collective is not None:
        doing, since_ns = Doing.IN_COLLECTIVE, marks.collective_ns
    else:
        doing = Doing.COMPUTING
    found = Standing(rank, doing, info, progress, max(0, now_ns - since_ns), marks.collective)
    if doing is Doing.COMPUTING and not found.in_step:
        return Standing(rank, Doing.IDLE, info, progress, found.age_ns, None)
    return found


def standings(ranks: Iterable[ObservedRank]) -> dict[RankKey, Standing]:
    """Return what each rank is doing, without those whose rings do not show it."""
    found = {rank.key: standing(rank) for rank in ranks}
    return {key: each for key, each in found.items() if each is not None}


def blockers(waiter: Standing, among: Mapping[RankKey, Standing]) -> tuple[tuple[RankKey, ...], tuple[int, ...]]:
    """Return whom a rank waits for: the ranks that have not issued its broadcast, or are not in its collective.

    Returns:
        The ranks among those observed, and the global ranks of the group about which nothing is known.
    """
    run_id, own = waiter.key
    peers = [RankKey(run_id, rank) for rank in waiter.info.group_ranks if rank != own] if waiter.info.lockstep else []
    if waiter.info.rendezvous == "source" and waiter.source not in {None, own}:
        peers = [key for key in peers if key.rank == waiter.source]  # no other rank can hold up its broadcast
    known = [key for key in peers if key in among]
    unknown = tuple(key.rank for key in peers if key not in among)
    match waiter.doing:
        case Doing.WAITING if waiter.awaited is not None:
            late = tuple(
                key
                for key in known
                if ((issued := among[key].issued(waiter.info)) is not None and issued <= waiter.awaited)
                or among[key].doing is Doing.GONE
            )
            return late, unknown
        case Doing.IN_COLLECTIVE:
            return tuple(key for key in known if among[key].doing not in {Doing.IN_COLLECTIVE, Doing.WAITING}), unknown
        case _:
            return (), ()


def waits_in_words(waiter: Standing, among: Mapping[RankKey, Standing], facts: SeriesFacts) -> str:
    """Return a sentence about what a rank does, since when, and whom it waits for."""
    late = [facts.named(key.rank) for key in blockers(waiter, among)[0]]
    one, why = len(late) == 1, ""
    if late and waiter.doing is Doing.WAITING:
        why = f"; {units.listed('rank', late)} {'has' if one else 'have'} not issued it"
    elif late:
        why = f"; {units.listed('rank', late)} {'is' if one else 'are'} in no collective"
    return f"Rank {facts.named(waiter.key.rank)} is {waiter.activity}, for {units.age(waiter.age_ns)}{why}."


def _entries(rank: ObservedRank) -> list[tuple[SeriesInfo, Progress]]:
    """Return the running series of a rank's table with its progress in each."""
    pairs = enumerate(zip(rank.series, rank.ring.marks.progress, strict=False))
    return [
        (info, progress)
        for index, (info, progress) in pairs
        if not info.refused and index not in rank.ring.closed_series and progress.waiting < info.num_layers
    ]


def _last_ns(entry: tuple[SeriesInfo, Progress]) -> int:
    return max(entry[1].since_ns, entry[1].waiting_since_ns)
