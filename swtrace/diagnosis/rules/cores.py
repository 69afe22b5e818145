"""CPU time that was taken from ranks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from swtrace import units
from swtrace.diagnosis.case import Case
from swtrace.diagnosis.finding import WORTH, Finding, Level
from swtrace.diagnosis.rule import LINKS, STALLS, About, Needs, Rule
from swtrace.ledger.facts import StepFacts
from swtrace.ledger.planning.repair import Part, Repair
from swtrace.units import milliseconds, ratio

_TAKEN = 0.05
"""Smallest share of a rank's step time that is worth a sentence."""
_NOTABLE, _OFTEN = 0.02, 0.25
"""In this share of the steps, a rank must lose at least this share of the step: a single long loss is no pattern ..."""
_OFTEN_LATELY = 0.75
"""... or in this share of the last few, if it has just begun."""
_EFFECTS = (*STALLS, "late_issue", *LINKS)
_FEWEST_STEPS = 8


class CoresTaken(Rule):
    """Ranks that wait for a core although they could run."""

    kinds = ("cores_taken",)
    about = About.CAUSE
    needs = Needs.STEPS
    explains = _EFFECTS

    def find(self, case: Case) -> Iterator[Finding]:
        """Yield one finding about all ranks that lose much of their step time so."""
        every = _losses(case.regular, "run_delay_us")
        found = [loss for loss in every if loss.matters]
        if not found:
            return
        worst, numbers = found[0], case.global_ranks(*(loss.rank for loss in found))
        said = [
            f"rank {case.facts.named(number)} {ratio(loss.share)}" for number, loss in zip(numbers, found, strict=True)
        ]
        spared = [loss.share for loss in every if not loss.matters]
        others = f"the other ranks at most {ratio(max(spared))}" if spared else "no rank is spared"
        since_step, since_ns = case.since(worst.steps, worst.shares)
        repair = Repair(Part.DELAY, tuple(sorted(loss.rank for loss in found)))
        saving = case.saving(repair, since_step)
        ranks = units.listed("Rank", [case.facts.named(number) for number in numbers])
        waits = "waits" if len(found) == 1 else "wait"
        yield Finding(
            "cores_taken",
            Level.NOTE if saving is not None and saving.low < WORTH else Level.WARNING,
            f"{ranks} {waits} for a CPU {'' if len(found) == 1 else 'up to '}{ratio(worst.share)} of step time while "
            f"ready to run ({milliseconds(worst.ns_per_step)} per step).",
            {"run_delay_share": worst.share, "run_delay_ns_per_step": worst.ns_per_step},
            ranks=numbers,
            advice="Find what else runs on these cores (`pidstat -u 1`, CPU limits of the container), and give each "
            "rank cores of its own.",
            since_ns=since_ns,
            since_step=since_step,
            evidence=(
                (
                    f"The kernel let {', '.join(said)} of step time wait for a CPU in the last "
                    f"{units.counted(len(worst.steps), 'step')}; {others}."
                ),
            ),
            repair=repair,
            saving=saving,
        )


class Steal(Rule):
    """Hosts whose hypervisor gives their CPU time to others."""

    kinds = ("steal",)
    about = About.CAUSE
    needs = Needs.STEPS
    explains = _EFFECTS

    def find(self, case: Case) -> Iterator[Finding]:
        """Yield one finding about each such host, and all its ranks."""
        of_hosts: dict[str, list[_Loss]] = {}
        for loss in _losses(case.regular, "steal_us"):
            (number,) = case.global_ranks(loss.rank)
            of_hosts.setdefault(case.facts.host_of(number), []).append(loss)
        for host, losses in of_hosts.items():
            worst, share = losses[0], float(np.mean([loss.share for loss in losses]))
            if share < _TAKEN or not worst.matters:
                continue
            numbers = case.global_ranks(*(loss.rank for loss in losses))
            since_step, since_ns = case.since(worst.steps, worst.shares)
            yield Finding(
                "steal",
                Level.WARNING,
                f"The hypervisor takes {ratio(share)} of step time from the processors of {host or 'this host'}.",
                {"steal_share": share, "steal_ns_per_step": float(np.mean([loss.ns_per_step for loss in losses]))},
                ranks=numbers,
                advice="Other virtual machines use the same processors. Ask for dedicated ones, or move to another "
                "host: nothing inside this one helps.",
                since_ns=since_ns,
                since_step=since_step,
                evidence=(
                    (
                        f"Steal counted by the kernel, summed over the host's processors: "
                        f"{milliseconds(worst.ns_per_step)} per step on rank {case.facts.named(numbers[0])} (last "
                        f"{units.counted(len(worst.steps), 'step')})."
                    ),
                ),
            )


class _Loss(NamedTuple):
    """What one rank lost."""

    rank: int
    steps: list[StepFacts]
    shares: npt.NDArray[np.float64]
    """``[step]``, of step time."""
    share: float
    """Of the time of all steps."""
    ns_per_step: float

    @property
    def matters(self) -> bool:
        """Whether it lost much, and not only in a few steps."""
        lost = self.shares >= _NOTABLE
        return self.share >= _TAKEN and bool(lost.mean() >= _OFTEN or lost[-_FEWEST_STEPS:].mean() >= _OFTEN_LATELY)


def _losses(steps: list[StepFacts], column: str) -> list[_Loss]:
    """Return what each rank with enough steps lost, the worst first."""
    losses = []
    if steps:
        lost_ns = 1e3 * np.array([getattr(step, column) for step in steps])
        took_ns = np.array([step.duration_ns for step in steps], np.float64)
        for rank in range(took_ns.shape[1]):
            ran = np.flatnonzero(took_ns[:, rank])
            if len(ran) >= _FEWEST_STEPS:
                lost, took = lost_ns[ran, rank], took_ns[ran, rank]
                share = float(lost.sum() / took.sum())
                losses.append(_Loss(rank, [steps[row] for row in ran], lost / took, share, float(lost.mean())))
    return sorted(losses, key=lambda loss: -loss.share)
