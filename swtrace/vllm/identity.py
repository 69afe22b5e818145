"""Who this worker is, told to the recording before its ring is made."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from swtrace.series.recording import describe_model
from swtrace.settings import VARIABLES

if TYPE_CHECKING:
    from swtrace.settings import Settings

_RECORDING = {"directory": str, "run_id": str, "ring_records": str, "ring_keep_s": str, "timeout_s": str}


def announce(settings: Settings, vllm_config: Any) -> None:
    """State model and ring settings for this process.

    The recording reads the environment, as it must where no vLLM is; what ``--additional-config`` said
    instead is put there.
    """
    served = vllm_config.model_config.served_model_name
    describe_model(str(served[0] if isinstance(served, list) else served or vllm_config.model_config.model))
    for field, text in _RECORDING.items():
        value = getattr(settings, field)
        if value:
            os.environ[VARIABLES[field]] = text(value)
