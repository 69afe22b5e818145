"""What is said about a series that is only observed: where its steps spend their time, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from swtrace import units
from swtrace.diagnosis.case import Case
from swtrace.diagnosis.finding import Finding, Level
from swtrace.diagnosis.rule import About, Needs, Rule
from swtrace.ledger.facts import SeriesFacts

_STANDS_OUT = 1.25
"""A layer is named if it takes this many times as long as the others."""


class ObservedHeadline(Rule):
    """Nothing is shared, and how long a step takes on the rank with the longest."""

    kinds = ("observed", "nothing")
    about = About.HEADLINE

    def find(self, case: Case) -> Iterator[Finding]:
        """Yield one finding about every observed series."""
        facts = case.facts
        if facts.shared:
            return
        info = facts.ranks[0].info
        alone = _alone(facts)
        where = f" on rank {alone[0]}" if alone else ""
        what = f"Observed, not shared: {units.counted(info.num_layers, 'layer')} of {info.name}{where}"
        means = [rank.recent.step_ns / rank.recent.steps for rank in facts.ranks if rank.recent.steps]
        if not means:
            yield Finding("nothing", Level.NOTE, f"{what}. No step has been timed yet.")
            return
        yield Finding(
            "observed",
            Level.NOTE,
            f"{what}. A step takes {units.milliseconds(max(means))} (mean).",
            {"step_ns": max(means)},
            ranks=alone,
            advice="`swtrace plan` says what sharing would cost and save.",
        )


class LayerCompute(Rule):
    """How long a layer takes, when its linear begins, and which layer takes longest.

    A layer lasts until the next one is reached. So the last layer is left out: the step goes on after it.
    """

    kinds = ("layer_compute",)
    about = About.CAUSE
    needs = Needs.OBSERVED

    def find(self, case: Case) -> Iterator[Finding]:
        """Yield one finding, if the layers can be compared."""
        whole = [step for step in case.regular if step.whole.any()]
        if not whole or whole[0].issued_ns.shape[1] < 2:  # noqa: PLR2004 - a single layer has no next one
            return
        took = np.concatenate([step.layer_ns[step.whole, :-1] for step in whole])
        reached = np.concatenate([step.issued_ns[step.whole] for step in whole])
        begun = np.concatenate([step.wait_begin_ns[step.whole] for step in whole])
        of_layer = np.median(took, axis=0)
        typical, longest = float(np.median(of_layer)), float(of_layer.max())
        layer = case.facts.ranks[0].info.layers[int(of_layer.argmax())]
        numbers = {"layer_ns": typical, "longest_layer_ns": longest}
        alone = _alone(case.facts)
        sentence = f"{f'On rank {alone[0]}, a' if alone else 'A'} layer takes {units.milliseconds(typical)}"
        if (called := begun > 0).any():
            until_linear = float(np.median((begun - reached)[called]))
            numbers["until_linear_ns"] = until_linear
            sentence += f", of which {units.milliseconds(until_linear)} pass before its linear begins"
        sentence += " (medians)."
        if longest >= _STANDS_OUT * typical:
            sentence += f" Layer {layer} takes longest, {units.milliseconds(longest)}."
        yield Finding("layer_compute", Level.NOTE, sentence, numbers, ranks=alone, layer=layer)


def _alone(facts: SeriesFacts) -> tuple[int, ...]:
    """Return the only rank of a series; nothing if it has several."""
    return facts.key.group_ranks if len(facts.key.group_ranks) == 1 else ()
