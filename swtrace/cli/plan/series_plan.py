"""The plan for one series: what was measured, what was predicted for other settings, and which of them to use."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from typing import Any

from swtrace.ledger.facts import SeriesKey, StepFacts
from swtrace.ledger.planning.pareto import Budget, choose, front
from swtrace.ledger.planning.planner import Baseline
from swtrace.ledger.planning.prediction import UNSHARED, Candidate, Prediction
from swtrace.plan_file import Conditions, PlanFile
from swtrace.settings import CONFIG_KEY, VARIABLES
from swtrace.trace.identity import SeriesInfo, Terms, terms
from swtrace.trace.schema import Phase


@dataclass(frozen=True, slots=True)
class SeriesPlan:
    """What can be said about one series."""

    key: SeriesKey
    info: SeriesInfo
    """As its first rank described it."""
    conditions: Conditions
    steps: int
    """Finished steps that were read."""
    phases: tuple[str, ...]
    """Phases of these, the most frequent first."""
    budget: Budget
    measured: Baseline | None
    """The run itself; None if its steps cannot be used."""
    predictions: tuple[Prediction, ...]

    @property
    def terms(self) -> Terms:
        """How sentences speak of the layers that any candidate shares or offloads."""
        return terms(self.info.kind)

    @property
    def predicted(self) -> bool:
        """Whether anything is known about sharing."""
        return any(shares(each.candidate) and not each.refusal for each in self.predictions)

    @property
    def front(self) -> tuple[Prediction, ...]:
        """The predictions that no other one beats, smallest saving first."""
        return front(self.predictions)

    @property
    def chosen(self) -> Prediction | None:
        """The best prediction within the budget; None if there is none, or no sharing was predicted."""
        return choose(self.predictions, self.budget) if self.predicted else None

    @property
    def shown(self) -> tuple[Prediction, ...]:
        """No sharing, the front and the choice, smallest saving first; nothing if no sharing was predicted."""
        if not self.predicted:
            return ()
        rows = [each for each in (self.unshared, *self.front, self.chosen) if each is not None]
        return tuple(sorted(dict.fromkeys(rows), key=lambda each: each.saved_bytes))

    @property
    def unshared(self) -> Prediction | None:
        """What was predicted for no sharing; None if nothing was."""
        return next((each for each in self.predictions if not shares(each.candidate) and each.step_ns), None)

    @property
    def closest(self) -> Prediction | None:
        """Of what saves memory, the prediction with the lowest upper bound of stall; None if there is none.

        If any leaves as little memory as the budget says, only of those.
        """
        held = self.budget.memory_bytes
        known = [
            (held is not None and each.memory_bytes > held, each.stall_ratio.high, -each.saved_bytes, number)
            for number, each in enumerate(self.predictions)
            if each.stall_ratio is not None and each.saved_bytes > 0
        ]
        return self.predictions[min(known)[-1]] if known else None

    @property
    def refusals(self) -> dict[str, int]:
        """Why candidates were not predicted, and how many each reason affects, the most frequent first."""
        return dict(Counter(each.refusal for each in self.predictions if each.refusal).most_common())

    def plan_file(self) -> PlanFile | None:
        """Return the chosen plan, for ranks that share; None if nothing is chosen."""
        chosen = self.chosen
        if chosen is None or chosen.step_ns is None or chosen.stall_ratio is None or self.info.offloaded:
            return None
        return PlanFile(
            series=self.key.name,
            start_layer=self.key.start_layer,
            settings=settings(self.key.name, chosen.candidate),
            step_seconds=chosen.step_ns.scaled(1e-9),
            stall_ratio=chosen.stall_ratio,
            conditions=self.conditions,
            made_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )


@dataclass(frozen=True, slots=True)
class Common:
    """What all predictions of a table have in common is said once, so that the table stays narrow."""

    columns: tuple[str, ...]
    """Of transport, windows and grouping, those that differ."""
    said: str
    """The others in words: ``by pull, static windows``."""

    @classmethod
    def of(cls, shown: Iterable[Prediction]) -> Common:
        """Return what these predictions have in common, apart from no sharing."""
        shared = [each.candidate for each in shown if shares(each.candidate)]
        if any(each.grouping is not None for each in shared):
            return cls(("grouping",), "")
        transports, windows = {each.transport for each in shared}, {each.windows for each in shared}
        differ = (("transport", transports), ("windows", windows))
        said = (
            *(f"by {each}" for each in transports if len(transports) == 1),
            *(f"{each} windows" for each in windows if len(windows) == 1),
        )
        return cls(tuple(name for name, values in differ if len(values) > 1), ", ".join(said))


def shares(candidate: Candidate) -> bool:
    """Return whether a candidate shares or offloads any layer."""
    return candidate.share != UNSHARED


@dataclass(frozen=True, slots=True)
class ToCopy:
    """How to start vLLM with the settings of a candidate."""

    environment: Mapping[str, str] | None
    """Of every rank; None if only arguments give these settings."""
    additional_config: Mapping[str, Any] | None
    """As in ``--additional-config``; None likewise."""
    vllm_arguments: tuple[str, ...]

    @classmethod
    def of(cls, series: str, candidate: Candidate) -> ToCopy:
        """Return the settings of a candidate that shares or offloads layers."""
        grouping = candidate.grouping
        if grouping is None:
            values = settings(series, candidate)
            config = additional_config(values)
            return cls(variables(values), config, ("--additional-config", json.dumps(config)))
        pairs = {
            "backend": ("prefetch",),
            "params": grouping.params,
            "group-size": (grouping.group_size,),
            "num-in-group": (grouping.num_in_group,),
            "prefetch-step": (candidate.prefetch_step,),
        }
        arguments = [(f"--offload-{name}", *map(str, values)) for name, values in pairs.items() if values]
        return cls(None, None, tuple(chain.from_iterable(arguments)))


def settings(series: str, candidate: Candidate) -> dict[str, Any]:
    """Return the settings of a candidate that ranks share under, as in ``additional_config["swtrace"]``."""
    common = {"enabled": True, "series": [series], "share": str(candidate.share)}
    if not shares(candidate):
        return common
    return {
        **common,
        "prefetch_step": candidate.prefetch_step,
        "transport": candidate.transport,
        "windows": candidate.windows,
    }


def variables(values: Mapping[str, Any]) -> dict[str, str]:
    """Return the same settings as environment variables."""
    texts = {key: ",".join(value) if isinstance(value, list) else str(value) for key, value in values.items()}
    return {VARIABLES[key]: "1" if key == "enabled" else text for key, text in texts.items()}


def additional_config(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the same settings as the value of ``--additional-config``."""
    return {CONFIG_KEY: dict(values)}


def conditions(
    info: SeriesInfo, steps: Sequence[StepFacts], model: str, *, ranks: int, scale_compute: float
) -> Conditions:
    """Return what predictions for these steps hold for."""
    names = phases(steps)
    tokens = [int(step.tokens[rank]) for step in steps for rank in step.running if step.ended[rank]]
    return Conditions(
        ranks=ranks,
        stack_layers=info.stack_layers,
        layer_bytes=info.layer_bytes,
        model=model,
        phase=names[0] if len(names) == 1 else "",
        tokens=sum(tokens) / len(tokens) if any(tokens) else None,
        scale_compute=scale_compute,
    )


def phases(steps: Iterable[StepFacts]) -> tuple[str, ...]:
    """Return the phases of steps, the most frequent first."""
    counts = Counter(int(step.phase[rank]) for step in steps for rank in step.running if step.ended[rank])
    return tuple(Phase(number).name.lower() for number, _ in counts.most_common() if number in set(Phase))
