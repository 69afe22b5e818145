"""Rings and ranks that cannot be read or lose records, and series that are not shared."""

from __future__ import annotations

from collections.abc import Iterator

from swtrace import units
from swtrace.diagnosis.finding import Finding, Level
from swtrace.diagnosis.rule import HostRule
from swtrace.observing.observation import Observation
from swtrace.observing.origin import Link


class RecordsLost(HostRule):
    """Records that were overwritten or damaged before they were read."""

    kinds = ("records_lost",)

    def find(self, observation: Observation) -> Iterator[Finding]:
        """Yield one finding about all ranks of a run that lost records."""
        for run_id in dict.fromkeys(rank.identity.run_id for rank in observation.ranks):
            ranks = [rank for rank in observation.ranks if rank.identity.run_id == run_id and rank.ring.statistics.lost]
            if not ranks:
                continue
            ranks.sort(key=lambda rank: -rank.ring.statistics.lost)
            lost = sum(rank.ring.statistics.lost for rank in ranks)
            damaged = sum(rank.ring.statistics.damaged for rank in ranks)
            written = sum(rank.ring.statistics.written for rank in ranks)
            named = units.listed("rank", [str(rank.identity.rank) for rank in ranks])
            why = f", {damaged} of them damaged" if damaged else " because they were overwritten before they were read"
            yield Finding(
                "records_lost",
                Level.WARNING,
                f"{units.counted(lost, 'record')} of {named} {'is' if lost == 1 else 'are'} lost{why}: no figure "
                "includes them.",
                {"lost": lost, "damaged": damaged, "written": written},
                ranks=tuple(rank.identity.rank for rank in ranks),
                run_id=run_id,
                evidence=(f"These ranks have written {units.counted(written, 'record')}.",),
                advice="Something else writes to the ring files: check who may write to the folder."
                if damaged
                else "Give the reader more CPU, or set a larger SWTRACE_RING_RECORDS on the ranks.",
            )


class RingsUnreadable(HostRule):
    """Ring files that cannot be used."""

    kinds = ("rings_unreadable",)

    def find(self, observation: Observation) -> Iterator[Finding]:
        """Yield one finding about all of them."""
        problems = observation.problems
        if problems:
            yield Finding(
                "rings_unreadable",
                Level.WARNING,
                f"{units.counted(len(problems), 'ring')} cannot be used, so the ranks that write "
                f"{'it' if len(problems) == 1 else 'them'} are missing from all figures.",
                {"rings": len(problems)},
                evidence=tuple(f"{path}: {problem}." for path, problem in sorted(problems.items())),
                advice="`swtrace doctor` says what helps. Do not remove the files: their ranks may be alive.",
            )


class SilentSource(HostRule):
    """Daemons that do not answer."""

    kinds = ("source_silent",)

    def find(self, observation: Observation) -> Iterator[Finding]:
        """Yield one finding per daemon."""
        for origin in observation.origins:
            if origin.link in {Link.CONNECTING, Link.LOST}:
                yield Finding(
                    "source_silent",
                    Level.WARNING,
                    f"{origin.name} does not answer, so its ranks are missing from all figures, or as they were last.",
                    evidence=(f"{origin.detail[0].upper()}{origin.detail[1:]}.",) if origin.detail else (),
                    advice="Check that the daemon runs there, and that this host may reach it.",
                )


class NotShared(HostRule):
    """Series that were asked for but are not shared."""

    kinds = ("refused",)

    def find(self, observation: Observation) -> Iterator[Finding]:
        """Yield one finding per series and reason."""
        refused: dict[tuple[str, str, str], list[int]] = {}
        for rank in observation.ranks:
            for info in rank.series:
                if info.refused:
                    refused.setdefault((rank.identity.run_id, info.name, info.refused), []).append(rank.identity.rank)
        for (run_id, name, reason), ranks in refused.items():
            yield Finding(
                "refused",
                Level.WARNING,
                f"{name} is not shared on {units.listed('rank', [str(rank) for rank in ranks])}: {reason}.",
                ranks=tuple(ranks),
                run_id=run_id,
                advice="`swtrace doctor` shows what can be shared here.",
            )
