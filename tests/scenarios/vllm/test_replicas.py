"""Data-parallel replicas of a dense model are independent engines, so nothing is shared and each one says so.

Slow: a server with two engines.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from swtrace.cli.vllm_ranks import TinyLlama, Workload, run_ranks
from tests.support.vllm.replicas import Replicas, Served, serve
from tests.support.vllm.server import PROMPTS, TOKENS
from tests.support.vllm.shared_runs import SERIES, refusals, warnings

REASON = "data-parallel replicas of a dense model are independent engines that do not run in lockstep"

pytestmark = [pytest.mark.vllm, pytest.mark.slow]


@dataclass(frozen=True, slots=True)
class Dense:
    """The answers, logs and refusals of the replicas."""

    answers: dict[int, tuple[int, ...]]
    served: Served
    refused: dict[int, dict[str, str]]
    """By rank, while they ran."""


@pytest.fixture(scope="module")
def model(folder: Path) -> Path:
    """Return a dense model."""
    TinyLlama(layers=4, hidden=128).save(folder / "dense" / "model")
    return folder / "dense" / "model"


@pytest.fixture(scope="module")
def dense(model: Path) -> Dense:
    """Ask a server of two replicas, first one and then the other."""
    rings = model.parent / "rings"
    rings.mkdir(mode=0o700)
    # One run for both: without it each replica, a torch world of its own, makes up a run id.
    environment = {"SWTRACE": "1", "SWTRACE_DIR": str(rings), "SWTRACE_SERIES": SERIES, "SWTRACE_RUN_ID": "dense"}

    def talk(replicas: Replicas) -> tuple[dict[int, tuple[int, ...]], dict[int, dict[str, str]]]:
        answers = {replica: replicas.ask(replica, PROMPTS[0]) for replica in (0, 1)}
        return answers, refusals(rings, ranks=2)

    (answers, refused), served = serve(model, model.parent / "served", environment, talk)
    return Dense(answers, served, refused)


def test_replicas_answer_as_an_engine_without_swtrace(dense: Dense, model: Path) -> None:
    """Each replica generates the tokens of an engine without swtrace, while the other is idle."""
    (control,) = run_ranks(Workload(model, prompts=(PROMPTS[0],), tokens=TOKENS), model.parent, ranks=1)
    assert dense.answers == dict.fromkeys((0, 1), control.tokens[0])


def test_the_refusal_says_why(dense: Dense) -> None:
    """Each replica warns once with the reason, and a metric gives the same for either rank."""
    said = warnings(dense.served.log)
    assert len(said) == 2
    assert all(line.startswith(f"swtrace does not share {SERIES}: ") and REASON in line for line in said)
    assert dense.refused.keys() == {0, 1}
    assert all(why.keys() == {SERIES} and REASON in why[SERIES] for why in dense.refused.values())


def test_nothing_is_left(dense: Dense) -> None:
    """After Ctrl-C no process is left."""
    assert (dense.served.status, dense.served.orphans) == (0, [])


def test_strict_ends_the_start(model: Path) -> None:
    """With SWTRACE_STRICT=1 the server does not start, and says why."""
    environment = {"SWTRACE": "1", "SWTRACE_STRICT": "1", "SWTRACE_SERIES": SERIES}
    folder = model.parent / "strict"
    with pytest.raises(pytest.fail.Exception, match="the server is not up"):
        serve(model, folder, environment, lambda replicas: replicas.ask(0, PROMPTS[0]))
    assert f"RefusedError: {SERIES} is not shared: " in (folder / "server.log").read_text()
    assert REASON in (folder / "server.log").read_text()
