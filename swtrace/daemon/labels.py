"""Labels of the samples of ranks and series, unique within one exposition.

Prometheus identifies a rank by ``rank`` alone, as it identifies a process by its instance. A run that is started again
continues the time series of the run before, with counters that begin at 0. Only if two runs are *alive* at once on one
host and share a rank number does the younger one also carry ``run_id``. It keeps that label for as long as it is
seen, and the older one never gets it, so that no counter changes its labels half-way. A daemon that watches other
daemons adds ``host`` to every rank.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from swtrace import units
from swtrace.observing.observation import series_key

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from swtrace.ledger.facts import SeriesKey
    from swtrace.observing import ObservedRank
    from swtrace.observing.observation import SeriesEntry

Labels = dict[str, str]


@dataclass(frozen=True, slots=True)
class LabelledRank:
    """A rank, with labels that distinguish it from all others."""

    rank: ObservedRank
    labels: Labels
    names: Mapping[SeriesKey, str]
    """The ``series`` label of every series."""

    def series(self) -> Iterator[tuple[SeriesEntry, Labels]]:
        """Yield the shared series, each with labels that distinguish it from all others."""
        seen, key = set(), self.rank.key
        for entry in self.rank.entries():
            if entry.info.refused:
                continue
            label = self.names[series_key(key, entry.info)]
            if label not in seen:
                seen.add(label)
                yield entry, {**self.labels, "series": label}

    def refused(self) -> Iterator[Labels]:
        """Yield the labels of linears that were requested but are not shared."""
        pairs = {(e.info.name, e.info.refused) for e in self.rank.entries() if e.info.refused}
        for name, reason in sorted(pairs):
            yield {**self.labels, "series": name, "reason": reason}

    def untraced(self) -> Iterator[Labels]:
        """Yield labels for the ranks that, according to this one, do not record a series they share."""
        for entry, labels in self.series():
            for untraced in entry.info.untraced:
                yield _without_empty(**{**labels, "rank": str(untraced.rank), "host": "", "reason": untraced.reason})


class Labelling:
    """Assigns labels, and remembers which runs carry their id."""

    def __init__(self) -> None:
        """Start without any such run."""
        self._labelled: set[str] = set()

    def assign(self, ranks: tuple[ObservedRank, ...], *, hosts: bool = False) -> tuple[LabelledRank, ...]:
        """Return the ranks to show, one for each label set. With ``hosts``, each carries that of its host.

        Of several rings with the same label set, one with a living writer is preferred, then the youngest.
        """
        self._labelled &= {rank.identity.run_id for rank in ranks}
        holders: dict[tuple[str, int], str] = {}
        for each in sorted(ranks, key=_age):
            run_id, rank = each.key
            place = each.identity.host if hosts else "", rank
            if each.ring.alive and run_id not in self._labelled and holders.setdefault(place, run_id) != run_id:
                self._labelled.add(run_id)
        chosen: dict[tuple[int, str, str], ObservedRank] = {}
        for each in sorted(ranks, key=lambda each: (each.ring.alive, *_age(each))):
            run_id, rank = each.key
            labelled = run_id if run_id in self._labelled else ""
            chosen[rank, labelled, each.identity.host if hosts else ""] = each
        names = _series_labels(ranks)
        return tuple(
            LabelledRank(each, _without_empty(rank=str(rank), run_id=run_id, host=host), names)
            for (rank, run_id, host), each in sorted(chosen.items(), key=lambda item: item[0])
        )


def _without_empty(**labels: str) -> Labels:
    """Return the labels that have a value: an empty one is the same as none."""
    return {name: text for name, text in labels.items() if text}


def _series_labels(ranks: Iterable[ObservedRank]) -> dict[SeriesKey, str]:
    """Return the label of every series, which is the same on all of its ranks.

    If a rank uses a name twice, the start layer is appended: ``o_proj@30``. If the start layer is the same too,
    the ranks of the group are appended: ``o_proj@0/0-3``.
    """
    labels: dict[SeriesKey, str] = {}
    twice: set[tuple[object, ...]] = set()
    for rank in ranks:
        rank_key = rank.key
        keys = {series_key(rank_key, info) for info in rank.series if not info.refused}
        labels |= {key: key.name for key in keys}
        for fields in (2, 3):  # run and name; run, name and start layer
            twice |= {place for place, times in Counter(key[:fields] for key in keys).items() if times > 1}
    for key in labels:
        if key[:2] in twice:
            labels[key] += f"@{key.start_layer}"
        if key[:3] in twice:
            labels[key] += f"/{units.ranges(key.group_ranks)}"
    return labels


def _age(rank: ObservedRank) -> tuple[int, str, str]:
    """Return a sort key that puts the oldest run first and is the same in every daemon."""
    return rank.identity.start_time_ns, rank.identity.run_id, rank.ring.path
