"""The plan that a run was started with (``SWTRACE_PLAN``): read by each rank, and compared with how the rank runs."""

from __future__ import annotations

import logging
from functools import cache
from typing import TYPE_CHECKING

from swtrace.errors import SettingsError
from swtrace.plan_file import PlanFile
from swtrace.settings import VARIABLES, Settings
from swtrace.share import Share
from swtrace.trace.identity import Planned

if TYPE_CHECKING:
    from collections.abc import Iterator

    from swtrace.trace.identity import SeriesInfo

logger = logging.getLogger(__name__)

_VARIABLE = VARIABLES["plan"]
_MOST_CHARACTERS = 300
"""Of what differs, in a ring."""


def read_plan(settings: Settings) -> PlanFile | None:
    """Return the plan that the settings name; None if they name none, or if a warning says why it cannot be used.

    Raises:
        SettingsError: it cannot be used, and ``SWTRACE_STRICT=1``.
    """
    if settings.plan is None:
        return None
    try:
        plan = PlanFile.read(settings.plan)
        Settings().overlay(plan.settings)  # checks them
    except SettingsError as error:
        if settings.strict:
            raise SettingsError(f"{_VARIABLE}: {error}") from None
        _warn_once(f"swtrace runs without a plan: {_VARIABLE}: {error}")
        return None
    return plan


def planned(plan: PlanFile | None, info: SeriesInfo, model: str) -> Planned | None:
    """Return what a plan says about a series; None if it is about another one.

    If the series does not run as planned, a warning says what differs, and so does the result.

    Args:
        plan: The plan that the rank was started with, if any.
        info: The series' constants.
        model: The model that this process runs; empty if unknown.
    """
    if plan is None:
        return None
    if (plan.series, plan.start_layer) != (info.name, info.start_layer):
        logger.info(
            "series %r from layer %d has no plan: %s is for %r from layer %d",
            *(info.name, info.start_layer, _VARIABLE, plan.series, plan.start_layer),
        )
        return None
    differs = ", ".join(_differences(plan, info, model))[:_MOST_CHARACTERS]
    if differs:
        _warn_once(f"series {info.name!r}: the plan of {_VARIABLE} is for other settings: {differs}")
    conditions = plan.conditions
    return Planned(
        digest=plan.digest,
        step_ns=plan.step_seconds.scaled(1e9),
        stall_ratio=plan.stall_ratio,
        phase=conditions.phase,
        tokens=conditions.tokens if conditions.scale_compute == 1 else None,  # otherwise it is for other batches
        differs=differs,
    )


def _differences(plan: PlanFile, info: SeriesInfo, model: str) -> Iterator[str]:
    """Yield what is not as planned: ``prefetch step 2, not 1``."""
    conditions, wanted = plan.conditions, Settings().overlay(plan.settings)
    observed, observing = not info.shared, wanted.share.observes
    if observed != observing:
        yield f"layers are {'observed' if observed else 'shared'}, not {'observed' if observing else 'shared'}"
        return
    if not observed and info.layers_of(wanted.share) != info.layers:
        yield f"share {Share.of_layers(info.layers)}, not {wanted.share}"
    of_settings = [
        ("prefetch step", info.prefetch_step, wanted.prefetch_step),
        ("windows", info.windows, wanted.windows),
        ("transport", info.kind, wanted.transport),
    ]
    of_conditions = [
        ("ranks", len(info.group_ranks), conditions.ranks),
        ("layers of the stack", info.stack_layers, conditions.stack_layers),
        ("bytes of a layer", info.layer_bytes, conditions.layer_bytes),
        ("model", model, conditions.model),
    ]
    for name, value, planned in (*(() if observed else of_settings), *of_conditions):
        if planned not in {"auto", "", value} and value != "":
            yield f"{name} {value}, not {planned}"


@cache
def _warn_once(text: str) -> None:
    logger.warning("%s", text)
