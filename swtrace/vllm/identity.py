"""Who this worker is, told to the recording before its ring is made."""

from __future__ import annotations

import os
from typing import Any

from swtrace.series.recording import describe_model
from swtrace.settings import VARIABLES, Settings

_RECORDING = ("directory", "run_id", "ring_records", "ring_keep_s", "timeout_s")


def announce(settings: Settings, vllm_config: Any) -> None:
    """State model and ring settings for this process.

    The recording reads the environment, as it must where no vLLM is; what ``--additional-config`` said
    instead is put there.
    """
    served = vllm_config.model_config.served_model_name
    describe_model(str(served[0] if isinstance(served, list) else served or vllm_config.model_config.model))
    in_environment = Settings.from_environment()
    for field in _RECORDING:
        value = getattr(settings, field)
        if value != getattr(in_environment, field):
            os.environ[VARIABLES[field]] = str(value)
