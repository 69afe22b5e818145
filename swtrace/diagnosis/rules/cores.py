"""CPU time that was taken from ranks."""

from __future__ import annotations

from collections.abc import Iterator

from swtrace import units
from swtrace.diagnosis.case import Case
from swtrace.diagnosis.finding import Finding, Level
from swtrace.diagnosis.rule import About, Needs, Rule

_NOISE_SHARE = 0.05
"""Smallest share of step time that is worth a sentence."""


class MachineNoise(Rule):
    """Ranks waited for a CPU, or the hypervisor took CPU time from them."""

    kinds = ("machine_noise",)
    about = About.CAVEAT
    needs = Needs.STEPS

    def find(self, case: Case) -> Iterator[Finding]:
        """Yield a finding if much of step time was lost."""
        steps = case.regular
        elapsed = sum(int(step.duration_ns.sum()) for step in steps)
        delayed = sum(int(step.run_delay_us.sum()) for step in steps) * 1000
        stolen = sum(int(step.steal_us.sum()) for step in steps) * 1000
        if not elapsed or max(delayed, stolen) < _NOISE_SHARE * elapsed:
            return
        yield Finding(
            "machine_noise",
            Level.WARNING,
            f"Ranks waited for a CPU {units.ratio(delayed / elapsed)} of step time, and the hypervisor took "
            f"{units.ratio(stolen / elapsed)}.",
            {"run_delay_share": delayed / elapsed, "steal_share": stolen / elapsed},
            advice="Give each rank its own core; until then, the figures also reflect other work on the machine.",
        )
