"""Our settings inside vLLM's config, where its compile cache key sees them.

A model compiled with waits and one compiled without must never be taken for each other, and vLLM's
key covers its config, not our environment. So ``additional_config["swtrace"]`` always holds the
settings in force that shape the model, and ``additional_config["swtrace_outcome"]`` what a worker made of them:
the same settings share weights on two ranks and nothing on one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from swtrace.errors import SettingsError
from swtrace.settings import CONFIG_KEY, Settings

if TYPE_CHECKING:
    from collections.abc import Mapping

OUTCOME_KEY = f"{CONFIG_KEY}_outcome"


def settle(vllm_config: Any) -> Settings:
    """Return the settings in force, ``--additional-config`` over environment, and write them into the config.

    Raises:
        SettingsError: a setting cannot be used, or ``additional_config`` is no dict.
    """
    additional = vllm_config.additional_config
    if not isinstance(additional, dict):
        raise SettingsError(
            f"additional_config is a {type(additional).__name__}: swtrace can state its settings only in a dict; "
            "pass one, or unset SWTRACE"
        )
    given = additional.get(CONFIG_KEY, {})
    settings = Settings.from_environment().overlay(given)
    # What else the user gave stays: it has to reach the workers, too.
    vllm_config.additional_config = {**additional, CONFIG_KEY: {**given, **settings.shape()}}
    return settings


def state_outcome(vllm_config: Any, shared: Mapping[str, object]) -> None:
    """Write what is shared, by series name; empty where nothing is. Must come before the model is compiled."""
    vllm_config.additional_config = {**vllm_config.additional_config, OUTCOME_KEY: dict(shared)}
