"""Our settings in vLLM's config, so that its compile cache key covers them.

A model compiled with waits must never be confused with one compiled without, and vLLM's
key covers its config but not our environment. So ``additional_config["swtrace"]`` always holds the
effective settings that shape the model. ``additional_config["swtrace_outcome"]`` holds what a worker shares under
them, because the same settings share weights on two ranks and nothing on one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from swtrace.errors import SettingsError
from swtrace.settings import CONFIG_KEY, Settings
from swtrace.vllm.replicas import run_id_of_replicas

if TYPE_CHECKING:
    from collections.abc import Mapping

OUTCOME_KEY = f"{CONFIG_KEY}_outcome"


def resolve_settings(vllm_config: Any) -> Settings:
    """Return the effective settings and write them into the config. ``--additional-config`` overrides the environment.

    Raises:
        SettingsError: a setting is invalid or lacks another, or ``additional_config`` is not a dict.
    """
    additional = vllm_config.additional_config
    if not isinstance(additional, dict):
        raise SettingsError(
            f"additional_config is a {type(additional).__name__}, but swtrace can store its settings only in a dict; "
            "pass a dict, or unset SWTRACE"
        )
    given = additional.get(CONFIG_KEY, {})
    settings = Settings.from_environment().overlay(given)
    settings.check_replicas()
    settings = replace(settings, run_id=settings.run_id or run_id_of_replicas(vllm_config))
    # Keep the other keys that the user gave, because they have to reach the workers.
    vllm_config.additional_config = {**additional, CONFIG_KEY: {**given, **settings.shape()}}
    return settings


def write_outcome(vllm_config: Any, shared: Mapping[str, object]) -> None:
    """Write what is shared, by series name; empty if nothing is. Call before the model is compiled."""
    vllm_config.additional_config = {**vllm_config.additional_config, OUTCOME_KEY: dict(shared)}
