"""The findings that are metrics: what the rules find that somebody should see, as of each scrape.

What ranks do now is found at every scrape. The rules about steps take some milliseconds per series, so they may use
only a :data:`SHARE` of a core: each scrape applies them to the series that were judged longest ago. The other series
keep their findings, and so does a series to which nothing came since it was judged.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import inf

from swtrace.daemon.labels import LabelledRank, Labels
from swtrace.diagnosis.diagnosis import condition_kinds, conditions, of_hosts, verdict
from swtrace.diagnosis.finding import Finding, Level
from swtrace.ledger.facts import SeriesFacts, SeriesKey, StepFacts
from swtrace.observing import Observation, ObservedRank
from swtrace.observing.observation import series_key
from swtrace.trace.identity import RankKey

_log = logging.getLogger(__name__)

SHARE = 0.05
"""Of a core, for the rules about steps."""
_SAVED_S = 0.5
"""CPU time that a scrape may use for them, however long ago the last one was, until it begins its last series."""
_LEAST = Level.WARNING
"""Notes call for no action, and most of them are always true."""


@dataclass(frozen=True, slots=True)
class _Judged:
    facts: SeriesFacts
    findings: tuple[Finding, ...]
    at_s: float


class CurrentFindings:
    """Finds what is wrong, and remembers what was found about each series."""

    def __init__(
        self, *, now_s: Callable[[], float] = time.monotonic, cpu_s: Callable[[], float] = time.thread_time
    ) -> None:
        """Judge no series yet. Tests replace the clocks."""
        self._now_s = now_s
        self._cpu_s = cpu_s
        self._judged: dict[SeriesKey, _Judged] = {}
        self._left_s = _SAVED_S
        self._asked_s = now_s()
        self._logged: set[str] = set()

    def of(self, observation: Observation) -> Iterator[tuple[SeriesKey | None, Finding]]:
        """Yield every finding from the level of a warning on, with its series; None if it is about no single one."""
        ranks = {rank.key: rank for rank in observation.ranks}
        now_s = self._now_s()
        self._left_s = min(_SAVED_S, self._left_s + SHARE * (now_s - self._asked_s))
        self._asked_s = now_s
        series = {facts.key: facts for facts in observation.facts.series if facts.ranks}
        self._judged = {key: judged for key, judged in self._judged.items() if key in series}
        for key in sorted(series, key=lambda key: self._judged[key].at_s if key in self._judged else -inf):
            facts, steps = series[key], observation.history.get(key, ())
            here = [ranks[one] for rank in key.group_ranks if (one := RankKey(key.run_id, rank)) in ranks]
            known = self._judged.get(key)
            if (known is None or known.facts is not facts) and self._left_s > 0:
                began_s = self._cpu_s()
                found = self._found(_judge, facts, steps, here)
                self._left_s -= self._cpu_s() - began_s
                known = self._judged[key] = _Judged(facts, found, now_s)
            lasting = known.findings if known else ()
            for finding in (
                *self._found(conditions, facts, steps, here),
                *(finding for finding in lasting if finding.kind not in condition_kinds()),
            ):
                if finding.level >= _LEAST:
                    yield key, finding
        for finding in self._found(of_hosts, observation):
            if finding.level >= _LEAST:
                yield None, finding

    def _found(self, find: Callable[..., tuple[Finding, ...]], *case: object) -> tuple[Finding, ...]:
        """Return what is found; nothing if a rule fails, because then the other metrics must not be lost too."""
        try:
            return find(*case)
        except Exception as error:  # noqa: BLE001 (a rule may meet anything that a damaged ring contains)
            if (said := repr(error)) not in self._logged:
                self._logged.add(said)
                _log.exception("a rule failed; its findings are missing from the metrics")
            return ()


def _judge(facts: SeriesFacts, steps: Sequence[StepFacts], ranks: Sequence[ObservedRank]) -> tuple[Finding, ...]:
    return verdict(facts, steps, ranks).findings


def labels_of(
    findings: Iterable[tuple[SeriesKey | None, Finding]], shown: Iterable[LabelledRank], observation: Observation
) -> list[Labels]:
    """Return the labels of the samples of findings: one for each of their ranks that is shown, or one without rank.

    A rank that is named, but not observed, has the labels of its series and its number.
    """
    by_rank = {rank.rank.key: rank for rank in shown}
    observed = {rank.key for rank in observation.ranks}
    of_series = {
        series_key(key, entry.info): {name: text for name, text in labels.items() if name not in {"rank", "host"}}
        for key, rank in by_rank.items()
        for entry, labels in rank.series()
    }
    labelled: dict[tuple[tuple[str, str], ...], Labels] = {}
    for key, finding in findings:
        if key is not None and key not in of_series:
            continue
        common = of_series[key] if key is not None else {}
        run_id = key.run_id if key is not None else finding.run_id
        what = {"kind": finding.kind, "severity": finding.level.word}
        for number in finding.ranks or (None,):
            if number is None:
                labels = {**common, **what}
            elif (rank := by_rank.get(RankKey(run_id, number))) is not None:
                labels = {**rank.labels, **common, **what}
            elif RankKey(run_id, number) in observed:
                continue  # a younger ring has its labels
            else:
                labels = {"rank": str(number), **common, **what}
            labelled[tuple(sorted(labels.items()))] = labels
    return list(labelled.values())
