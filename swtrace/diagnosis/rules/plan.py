"""Whether a run keeps to its plan."""

from __future__ import annotations

from collections.abc import Iterator

from swtrace import units
from swtrace.diagnosis.case import Case
from swtrace.diagnosis.finding import Finding, Level
from swtrace.diagnosis.rule import About, Needs, Rule
from swtrace.ledger.comparison import Comparison, compare

_MIN_STEPS = 16
"""The mean of fewer steps proves nothing."""


class AsPlanned(Rule):
    """What a plan predicts beside what was measured."""

    kinds = ("as_planned", "better_than_planned", "plan_missed", "plan_untested", "plan_differs")
    about = About.PLAN
    needs = Needs.STEPS

    def find(self, case: Case) -> Iterator[Finding]:
        """Yield one finding if the run was started with a plan."""
        compared = compare(case.facts)
        if compared is not None:
            yield beside_plan(compared)


def beside_plan(compared: Comparison) -> Finding:
    """Return the finding about a series with a plan."""
    if compared.differs:
        level, other = (Level.WARNING, "settings") if compared.planned.differs else (Level.NOTE, "batches")
        said = f"The plan is for other {other} and predicts nothing for this run: {compared.differs}."
        return Finding("plan_differs", level, said, advice=f"Plan for these {other}: `swtrace plan`.")
    kind, level, said, advice = "as_planned", Level.NOTE, "The run is as planned.", ""
    if compared.steps < _MIN_STEPS:
        noun = " ".join(filter(None, ("timed", compared.planned.phase.removeprefix("other"), "step")))
        steps = f"Only {units.counted(compared.steps, noun)}" if compared.steps else f"No {noun}"
        kind, said = "plan_untested", f"{steps} can be compared with the plan so far."
    elif compared.worse:
        kind, level = "plan_missed", Level.WARNING
        said = f"The {' and the '.join(compared.worse)} {'is' if len(compared.worse) == 1 else 'are'} above the plan."
        advice = (
            "Find out what changed since the plan was made: batches, other load on the hosts, the link. Or plan "
            "again, from this run: `swtrace plan`."
        )
    elif compared.better:
        kind, said = "better_than_planned", "The run is better than planned."
    ranks = (compared.rank,) if kind == "plan_missed" and compared.rank is not None else ()
    return Finding(kind, level, f"{said} {compared.sentence}", _numbers(compared), ranks=ranks, advice=advice)


def _numbers(compared: Comparison) -> dict[str, float]:
    predicted = {
        f"planned_{name}{end}": getattr(getattr(compared.planned, name), end.removeprefix("_") or "value")
        for name in ("step_ns", "stall_ratio")
        for end in ("", "_low", "_high")
    }
    measured = {"step_ns": compared.step_ns, "stall_ratio": compared.stall_ratio, "tokens": compared.tokens}
    return {**predicted, **{name: value for name, value in measured.items() if value is not None}}
