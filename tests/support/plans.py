"""Plans of made-up predictions, for the views that show them."""

from __future__ import annotations

from dataclasses import replace

from swtrace.cli.plan.asked import chosen_values
from swtrace.cli.plan.planning import Question
from swtrace.cli.plan.series_plan import SeriesPlan
from swtrace.cli.plan.source import Source
from swtrace.ledger.facts import SeriesKey
from swtrace.ledger.planning.pareto import Budget
from swtrace.ledger.planning.planner import Baseline
from swtrace.ledger.planning.prediction import UNSHARED, Candidate, Interval, Prediction
from swtrace.plan_file import Conditions
from swtrace.share import Share
from tests.support.recorded_run import series_info

LAYERS = 61
LAYER_BYTES = 112 << 20
MS = 1e6


def predicted(
    share: str,
    saved: int,
    step_ms: float,
    stall: tuple[float, float, float],
    *,
    k: int = 2,
    transport: str = "pull",
    refusal: str = "",
) -> Prediction:
    """Return a prediction that saves ``saved`` layers; its step time is sure to 2 %."""
    given = Share.parse(share)
    step = Interval(step_ms * MS, 0.98 * step_ms * MS, 1.02 * step_ms * MS)
    return Prediction(
        candidate=Candidate(given, k, transport, "static", 8),
        selected_layers=len(given.layers(0, LAYERS)),
        stack_layers=LAYERS,
        memory_bytes=(LAYERS - saved) * LAYER_BYTES,
        saved_bytes=saved * LAYER_BYTES,
        step_ns=None if refusal else step,
        stall_ratio=None if refusal else Interval(stall[1], stall[0], stall[2]),
        refusal=refusal,
    )


NOTHING = predicted(str(UNSHARED), 0, 60.0, (0.0, 0.0, 0.0), k=0)
HALF = predicted("1/2", 24, 60.5, (0.002, 0.008, 0.019))
WHOLE = predicted("all", 51, 80.0, (0.2, 0.25, 0.3))
REFUSED = predicted("1/4", 10, 0.0, (0.0, 0.0, 0.0), transport="broadcast", refusal="it was never measured")
LIMIT = Budget(stall_ratio=0.02)


def plan(*predictions: Prediction, budget: Budget = LIMIT, name: str = "self_attn.o_proj") -> SeriesPlan:
    """Return a plan of these predictions, made from a run that shared nothing."""
    info = replace(series_info(0, 8), name=name, transport="none")
    return SeriesPlan(
        key=SeriesKey("run-1", name, 0, tuple(range(8))),
        info=info,
        conditions=Conditions(ranks=8, stack_layers=LAYERS, layer_bytes=LAYER_BYTES, model="a/model", phase="decode"),
        steps=240,
        phases=("decode",),
        budget=budget,
        measured=Baseline(NOTHING.candidate, 60 * MS, 0.0, 0.0, LAYERS * LAYER_BYTES, 64) if predictions else None,
        predictions=predictions,
    )


def source(*, other_runs: tuple[str, ...] = (), refused: dict[str, str] | None = None) -> Source:
    """Return a recording, which the plans may be made from."""
    return Source("run.swrec", "run-1", other_runs, "a/model", (), refused or {}, ())


def question(budget: Budget = LIMIT) -> Question:
    """Return a question without what-ifs."""
    return Question(budget, chosen_values(None, None, None, None))
