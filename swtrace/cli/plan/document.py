"""A plan as JSON: durations in seconds, sizes in bytes. docs/planning.md describes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from swtrace.cli.plan import answer
from swtrace.cli.plan.planning import Question
from swtrace.cli.plan.series_plan import SeriesPlan, ToCopy, shares
from swtrace.cli.plan.source import Source
from swtrace.ledger.planning.prediction import Candidate, Interval, Prediction
from swtrace.plan_file import CONFIDENCE

_NS = 1e-9


def document(source: Source, plans: Sequence[SeriesPlan], question: Question) -> dict[str, Any]:
    """Return everything that the command found, as plain values."""
    return {
        "source": {
            "name": source.name,
            "run": source.run_id,
            "other_runs": list(source.other_runs),
            "model": source.model,
            "missing": list(source.notes),
        },
        "assumed": {
            "ranks": question.ranks,
            "bandwidth_bytes_per_second": question.bandwidth,
            "scale_compute": question.scale_compute,
        },
        "budget": asdict(question.budget),
        "confidence": CONFIDENCE,
        "notes": list(answer.notes(source, plans, question)),
        "series": [_series(plan, source.name) for plan in plans],
    }


def _series(plan: SeriesPlan, source: str) -> dict[str, Any]:
    measured, chosen = plan.measured, plan.chosen
    return {
        "name": plan.key.name,
        "start_layer": plan.key.start_layer,
        "answer": answer.answer(plan),
        "details": list(answer.details(plan, source)),
        "steps": plan.steps,
        "phases": list(plan.phases),
        "conditions": asdict(plan.conditions),
        "measured": None
        if measured is None
        else {
            **_candidate(measured.candidate),
            "step_seconds": measured.step_ns * _NS,
            "stall_ratio": measured.stall_ratio,
        },
        "chosen": None if chosen is None else {**_prediction(plan, chosen), **_to_copy(plan, chosen)},
        "predictions": [_prediction(plan, each) for each in plan.predictions],
    }


def _candidate(candidate: Candidate) -> dict[str, Any]:
    return {**asdict(candidate), "share": str(candidate.share)}


def _prediction(plan: SeriesPlan, prediction: Prediction) -> dict[str, Any]:
    return {
        **_candidate(prediction.candidate),
        "selected_layers": prediction.selected_layers,
        "memory_bytes": prediction.memory_bytes,
        "saved_bytes": prediction.saved_bytes,
        "step_seconds": _interval(prediction.step_ns, _NS),
        "stall_ratio": _interval(prediction.stall_ratio, 1.0),
        "refusal": prediction.refusal,
        "front": prediction in plan.front,
    }


def _to_copy(plan: SeriesPlan, chosen: Prediction) -> dict[str, Any]:
    if not shares(chosen.candidate):
        return {"environment": None, "additional_config": None, "vllm_arguments": None}
    return asdict(ToCopy.of(plan.key.name, chosen.candidate))


def _interval(interval: Interval | None, factor: float) -> dict[str, float] | None:
    return None if interval is None else asdict(interval.scaled(factor))
