"""A model runner that never asks for an offloader shares nothing, and that is told.

``SWTRACE=1`` takes effect when a runner makes its offloader. Runners that make none exist: the second
one of vLLM 0.27, or one of a platform plugin. Where a worker has loaded its model and nobody has asked,
the reason goes the way of every refusal: an error with ``SWTRACE_STRICT=1``, else a warning and a metric.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


class _Process:
    """Whether a runner of this process has asked for an offloader since a model was last loaded."""

    asked = False


def asked() -> None:
    """Note that the runner of the model that is about to be loaded has asked."""
    _Process.asked = True


def load_and_notice(load_model: Callable[..., Any]) -> Callable[..., Any]:
    """Return a worker wrapper's ``load_model`` that tells where its runner never asked."""

    @functools.wraps(load_model)
    def noticing_load_model(self: Any, *args: Any, **kwargs: Any) -> Any:
        was_asked, _Process.asked = _Process.asked, False
        result = load_model(self, *args, **kwargs)
        if not was_asked:
            _tell(self)
        return result

    return noticing_load_model


def _tell(wrapper: Any) -> None:
    from swtrace.vllm.configuration import settle
    from swtrace.vllm.worker_identity import share_nothing

    vllm_config = wrapper.vllm_config
    settings = settle(vllm_config)
    if not settings.enabled:
        return
    runner = type(getattr(wrapper.worker, "model_runner", None))
    reason = (
        f"vLLM's model runner {runner.__module__}.{runner.__qualname__} asks for no offloader, through which weights "
        "are shared; run with VLLM_USE_V2_MODEL_RUNNER=0 or another vLLM"
    )
    share_nothing(reason, settings, vllm_config)
