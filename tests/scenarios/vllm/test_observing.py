"""Real vLLM that is only observed: one rank, which could not share."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from swtrace.cli.vllm_ranks import RankResult, Workload, fork_ranks, run_ranks
from swtrace.session import RingsSession
from tests.support.vllm.shared_runs import SERIES, warnings

pytestmark = pytest.mark.vllm


def reloads(llm: Any) -> dict[str, Any]:
    """Reload the weights, which a model that shares refuses; return what the compile cache is told."""
    llm.collective_rpc("reload_weights")
    outcome: dict[str, Any] = llm.llm_engine.vllm_config.additional_config["swtrace_outcome"]
    return outcome


def passed_on() -> list[str]:
    """Return the calls that reach the offloader that vLLM chose."""
    from types import SimpleNamespace as Namespace

    from torch import nn
    from vllm.model_executor.offloader.base import BaseOffloader

    from swtrace.settings import Settings
    from swtrace.vllm.observing import ObservingOffloader

    called = []

    class Chosen(BaseOffloader):  # type: ignore[misc,unused-ignore]
        def wrap_modules(self, modules_generator: Any, prefix: str = "") -> list[nn.Module]:
            called.append(f"wrap {prefix}")
            return list(modules_generator)

        def sync_prev_onload(self) -> None:
            called.append("sync")

        def join_after_forward(self) -> None:
            called.append("join")

        def _start_prefetch(self, layer_idx: int) -> None:
            called.append(f"prefetch {layer_idx}")

    config = Namespace(model_config=Namespace(served_model_name="model"))
    offloader = ObservingOffloader(Settings(), config, Chosen())
    tower = [nn.Identity()]
    assert offloader.wrap_modules((module for module in tower), "visual") == tower
    offloader.sync_prev_onload()
    offloader.join_after_forward()
    offloader._start_prefetch(3)

    class Older(BaseOffloader):  # type: ignore[misc,unused-ignore]
        def wrap_modules(self, modules_generator: Any) -> list[nn.Module]:
            called.append("wrap decoder layers")
            return list(modules_generator)

    assert ObservingOffloader(Settings(), config, Older())._chosen_modules((module for module in tower), "") == tower
    return called


def test_calls_are_passed_on_to_the_offloader_that_vllm_chose(folder: Path) -> None:
    """So that a model whose weights vLLM offloads can be observed; another modality's layers are not.

    Offloaders of older versions take no prefix.
    """
    called = ["wrap visual", "sync", "join", "prefetch 3", "wrap decoder layers"]
    assert fork_ranks(passed_on, (), folder) == (called,)


def test_one_rank_is_observed_and_otherwise_left_alone(
    workload: Workload, control: tuple[RankResult, ...], folder: Path
) -> None:
    """It generates the same tokens and may reload its weights; every step has the reach and begin of every linear."""
    log = folder / "observed"
    log.mkdir()
    alone = replace(workload, plain_linears=(), inspect=reloads)
    environment = {"SWTRACE": "1", "SWTRACE_SHARE": "none", "SWTRACE_DIR": str(log / "rings"), "SWTRACE_CHECK": "1"}
    (rank,) = run_ranks(alone, log, ranks=1, environment=environment)
    assert rank.tokens == control[0].tokens
    assert rank.inspected == {SERIES: "observed alone"}
    assert warnings((log / "rank-0.log").read_text()) == []
    session = RingsSession(log / "rings")
    (series,) = session.facts().series
    info = series.ranks[0].info
    assert (info.transport, info.layers, info.layer_bytes) == ("none", tuple(range(7)), 128 * 128 * 2)
    steps = session.steps()
    assert len(steps) >= workload.tokens
    for step in steps:
        instants = np.stack((step.issued_ns[0], step.wait_begin_ns[0]), axis=1).reshape(-1)
        assert step.begin_ns[0] < instants[0]
        assert (np.diff(instants) > 0).all()
        assert instants[-1] < step.end_ns[0]
    session.close()
