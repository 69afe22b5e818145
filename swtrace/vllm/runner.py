"""Detection of model runners that never request an offloader, and so share nothing.

``SWTRACE=1`` takes effect when a runner creates its offloader. Some runners create none: the second
one of vLLM 0.27, or one of a platform plugin. If a worker has loaded its model without such a request,
that is reported like any refusal: as an error with ``SWTRACE_STRICT=1``, else as a warning and a metric.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


class _Process:
    """Whether a runner of this process has requested an offloader since the last model was loaded."""

    offloader_requested = False


def note_offloader_request() -> None:
    """Record that the runner of the next model to be loaded has requested an offloader."""
    _Process.offloader_requested = True


def check_after_loading(load_model: Callable[..., Any]) -> Callable[..., Any]:
    """Return a worker wrapper's ``load_model`` that reports a runner without such a request."""

    @functools.wraps(load_model)
    def checked_load_model(self: Any, *args: Any, **kwargs: Any) -> Any:
        requested, _Process.offloader_requested = _Process.offloader_requested, False
        result = load_model(self, *args, **kwargs)
        if not requested:
            _report(self)
        return result

    return checked_load_model


def _report(wrapper: Any) -> None:
    from swtrace.vllm.configuration import resolve_settings
    from swtrace.vllm.worker_identity import share_nothing

    vllm_config = wrapper.vllm_config
    settings = resolve_settings(vllm_config)
    if not settings.enabled:
        return
    runner = type(getattr(wrapper.worker, "model_runner", None))
    reason = (
        f"vLLM's model runner {runner.__module__}.{runner.__qualname__} creates no offloader, which swtrace needs to "
        "share weights; set VLLM_USE_V2_MODEL_RUNNER=0, or use another version of vLLM"
    )
    share_nothing(reason, settings, vllm_config)
