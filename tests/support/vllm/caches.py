"""A compiled run whose every rank has an inductor cache of its own. Runs inside a rank."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from swtrace.cli.vllm_ranks import Workload, _generate


@dataclass(frozen=True, slots=True)
class Compiled:
    """What one rank generated, and where its compiled code came from."""

    tokens: tuple[tuple[int, ...], ...]
    found: int
    """Graphs whose code was in the cache."""
    made: int
    """Graphs whose code was not there."""


def generate(workload: Workload, rendezvous: Path, cache: Path) -> Compiled:
    """Generate with a model that is compiled to, or found in, ``cache``.

    The cache is inductor's own. vLLM's ahead-of-time artifacts, which its CPU build cannot load, are turned off.
    """
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache / os.environ["RANK"])
    os.environ["VLLM_USE_AOT_COMPILE"] = "0"
    result = _generate(replace(workload, inspect=_counted), rendezvous)
    found, made = result.inspected
    return Compiled(result.tokens, found, made)


def _counted(_llm: Any) -> tuple[int, int]:
    from torch._dynamo.utils import counters

    return counters["inductor"]["fxgraph_cache_hit"], counters["inductor"]["fxgraph_cache_miss"]
