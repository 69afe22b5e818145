"""An offloader in place of the one that vLLM chose, which still gets every call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.model_executor.offloader.base import BaseOffloader

from swtrace.series.operations import forget
from swtrace.vllm.worker_identity import record_model

if TYPE_CHECKING:
    from collections.abc import Generator

    from torch import nn

    from swtrace.settings import Settings


class PassingOffloader(BaseOffloader):  # type: ignore[misc]  # vLLM is absent where types are checked
    """Passes on to the chosen offloader what a subclass does not define."""

    def __init__(self, settings: Settings, vllm_config: Any, chosen: Any) -> None:
        """Record nothing yet, and close what an earlier model in this process recorded.

        Args:
            settings: of this rank.
            vllm_config: of the engine.
            chosen: the offloader that vLLM chose.
        """
        self._settings = settings
        self._vllm_config = vllm_config
        self._chosen = chosen
        for name in vars(BaseOffloader):
            defined = getattr(type(self), name) is not getattr(BaseOffloader, name)
            if not defined and not name.startswith("__") and not name.startswith("_abc"):
                setattr(self, name, getattr(chosen, name))
        forget()
        record_model(vllm_config)

    def _chosen_modules(self, modules_generator: Generator[nn.Module, None, None], prefix: str) -> list[nn.Module]:
        """Let the chosen offloader build and wrap modules. In older versions of vLLM it takes no prefix."""
        modules: list[nn.Module] = self._chosen.wrap_modules(modules_generator, *([prefix] if prefix else ()))
        return modules
