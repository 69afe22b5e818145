"""What a plan says in sentences, the same on the terminal, on the page and in JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from swtrace import units
from swtrace.cli.plan.planning import Question
from swtrace.cli.plan.series_plan import SeriesPlan, shares
from swtrace.cli.plan.source import Source
from swtrace.ledger.planning.prediction import Candidate, Interval, Prediction
from swtrace.share import ALL
from swtrace.units import counted


def answer(plan: SeriesPlan) -> str:
    """Return the plan in one sentence."""
    chosen = plan.chosen
    share = plan.terms.share.capitalize()
    name = subject(plan)
    if not plan.predicted:
        why = next(iter(plan.refusals), "too few consecutive steps were timed in full")
        return f"No plan for {name}: {why}."
    if chosen is None:
        return f"No plan for {name}: nothing that was tried is within {budget(plan)}."
    if not shares(chosen.candidate):
        return f"{share} nothing of {name}: no settings that save memory are sure to keep {budget(plan)}."
    return (
        f"{share} {part(chosen.candidate)} of {name} with {settings_in_words(chosen.candidate)}: saves "
        f"{units.size(chosen.saved_bytes)} per rank, stalls for {stall(chosen)} of step time{_longer(plan, chosen)}."
    )


def details(plan: SeriesPlan, source: str) -> tuple[str, ...]:
    """Return what follows the answer: step times, and what was measured."""
    chosen, unshared = plan.chosen, plan.unshared
    said = []
    if chosen is not None and shares(chosen.candidate):
        against = f", and {duration(unshared.step_ns)} without {plan.terms.sharing}" if unshared is not None else ""
        said.append(f"A step would take {duration(chosen.step_ns)}{against}.")
    elif (closest := plan.closest) is not None:
        said.append(
            f"The closest: {part(closest.candidate)} with {settings_in_words(closest.candidate)} saves "
            f"{units.size(closest.saved_bytes)} per rank and stalls for {stall(closest)} of step time."
            f"{_enough(plan, closest)}"
        )
    said.append(_measured(plan, source))
    if len(plan.phases) > 1:
        said.append(f"These are {' and '.join(plan.phases)} steps together; --phase plans for one kind.")
    return tuple(said)


def _longer(plan: SeriesPlan, prediction: Prediction) -> str:
    """Return how much longer steps get. Stalls are only part of it: transfers also compete with compute."""
    unshared = plan.unshared
    if unshared is None or unshared.step_ns is None or prediction.step_ns is None:
        return ""
    longer = prediction.step_ns.value / unshared.step_ns.value - 1
    if units.ratio(abs(longer)) == units.ratio(0.0):
        return ", and leaves step time unchanged"
    return f", and makes steps {units.ratio(abs(longer))} {'shorter' if longer < 0 else 'longer'}"


def _enough(plan: SeriesPlan, prediction: Prediction) -> str:
    """Return which limit on stall would allow a prediction; empty if its stall is not what rules it out."""
    if prediction.stall_ratio is None or not replace(plan.budget, stall_ratio=1.0).allows(prediction):
        return ""
    return f" --max-stall {math.ceil(1000 * prediction.stall_ratio.high) / 10:g}% would allow it."


def notes(source: Source, plans: Sequence[SeriesPlan], question: Question) -> tuple[str, ...]:
    """Return what limits all plans together."""
    said = []
    assumed = []
    if question.ranks is not None:
        as_measured = ", between which a transfer takes as long as measured" if question.bandwidth is None else ""
        assumed.append(f"{question.ranks} ranks{as_measured}")
    if question.bandwidth is not None:
        assumed.append(f"a transport of {units.bandwidth(question.bandwidth)}")
    if question.scale_compute != 1:
        assumed.append(f"compute times {question.scale_compute:g}")
    if assumed:
        said.append(f"Assumed, not measured: {', '.join(assumed)}.")
    if len({plan.key.name for plan in plans}) > 1:
        said.append(
            "Each linear is planned on its own. If you share several, their costs add up at least, because they "
            "use the same transport: plan again from a run that shares them."
        )
    offloaded = [plan for plan in plans if plan.info.offloaded]
    if any(plan.predicted and plan.info.num_layers < plan.info.stack_layers for plan in offloaded):
        said.append(
            "Layers that were not offloaded are taken to be like the offloaded ones: in compute, copy and size. The "
            "more these vary, the wider the intervals of step time and stall."
        )
    if len(offloaded) > 1:
        said.append("All ranks take the same settings: use those of the rank that can afford least.")
    elif len({plan.key.start_layer for plan in plans}) > 1:
        said.append("Pipeline stages take the same settings: use those of the stage that can afford least.")
    said += [f"{name} was asked for and is not shared: {why}" for name, why in source.refused.items()]
    if source.other_runs:
        said.append(f"From run {source.run_id}. There are other runs: {', '.join(source.other_runs)}; --run plans one.")
    return tuple(said)


def _measured(plan: SeriesPlan, source: str) -> str:
    info, measured, tokens = plan.info, plan.measured, plan.conditions.tokens
    phase = f"{plan.phases[0]} " if len(plan.phases) == 1 and plan.phases != ("other",) else ""
    batch = f" of {tokens:.3g} tokens" if tokens is not None and tokens > 1 else ""
    whose = "" if info.lockstep or len(info.group_ranks) == 1 else ", all ranks together,"
    ranks = f"rank {info.group_ranks[0]}" if info.offloaded else counted(len(info.group_ranks), "rank")
    where = f"{counted(plan.conditions.stack_layers, 'layer')} on {ranks}"
    steps = f"Measured: {counted(plan.steps, f'{phase}step')}{batch}{whose} from {source}: {where}"
    if measured is None:
        return f"{steps}."
    took = units.duration(measured.step_ns)
    if not shares(measured.candidate):
        return f"{steps}, observed, not shared. A step took {took}."
    selected = part(measured.candidate)
    if info.offloaded:
        selected = f"{info.num_layers} of them"
    how = f"{selected} {plan.terms.shared} with {settings_in_words(measured.candidate)}"
    return f"{steps}, {how}. A step took {took} and stalled for {units.ratio(measured.stall_ratio)} of it."


def budget(plan: SeriesPlan) -> str:
    """Return the limits in words."""
    limits = []
    if plan.budget.stall_ratio is not None:
        limits.append(f"stall of at most {units.ratio(plan.budget.stall_ratio)} of step time")
    if plan.budget.memory_bytes is not None:
        limits.append(f"{units.size(plan.budget.memory_bytes)} per rank")
    return " and ".join(limits)


def subject(plan: SeriesPlan) -> str:
    """Return whose layers the plan is about: the name of a linear, or a rank whose layers vLLM offloads."""
    return f"rank {plan.info.group_ranks[0]}" if plan.info.offloaded else plan.key.name


def part(candidate: Candidate) -> str:
    """Return what is shared or offloaded: ``all layers``, ``1/2``, ``layers 0-40:2``, ``1 of every 4 layers``."""
    text, grouping = candidate.share.text, candidate.grouping
    if grouping is not None and text != ALL:
        return f"{grouping.num_in_group} of every {grouping.group_size} layers"
    return "all layers" if text == ALL else text.replace("layers:", "layers ")


def settings_in_words(candidate: Candidate) -> str:
    """Return the other settings: ``prefetch step 2 by pull``."""
    ahead = f"prefetch step {candidate.prefetch_step}"
    if candidate.grouping is not None:
        return ahead
    rolling = ", rolling windows" if candidate.windows != "static" else ""
    return f"{ahead} by {candidate.transport}{rolling}"


def layers(prediction: Prediction) -> str:
    """Return how many layers are shared or offloaded: ``31 of 61``."""
    return f"{prediction.selected_layers} of {prediction.stack_layers}"


def duration(interval: Interval | None) -> str:
    """Return a duration with its interval: ``61.9 ms (61.5 to 62.4)``."""
    if interval is None:
        return units.UNKNOWN
    return units.ranged((interval.value, interval.low, interval.high), units.duration)


def stall(prediction: Prediction) -> str:
    """Return a stall ratio with its range: ``0.8 % (0.2 to 1.9)``."""
    ratio = prediction.stall_ratio
    return units.UNKNOWN if ratio is None else units.ranged((ratio.value, ratio.low, ratio.high), units.ratio)
