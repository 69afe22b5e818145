"""The OpenAI-compatible server on two tensor parallel ranks of an MLA model, whose first projection they share."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from server import TOKENS, answers, serving, temporary_folder
from tiny_models import TinyDeepSeek
from vllm_runs import Samples, by_rank, watch

from swtrace.trace.reader import RingReader

pytestmark = pytest.mark.mla

SERIES = "self_attn.fused_qkv_a_proj"
MODEL = TinyDeepSeek()
MODES = {"eager": ("--enforce-eager",), "compiled": ()}


@dataclass(frozen=True, slots=True)
class Served:
    """One server's answers and what was left when it had been interrupted."""

    answers: dict[str, list[tuple[int, ...]]]
    status: int
    orphans: list[int]
    left_files: set[str]


@dataclass(frozen=True, slots=True)
class Pair:
    """A server without sharing, and one with."""

    control: Served
    shared: Served
    samples: Samples
    rings: Path
    compiled: bool


def _serve(folder: Path, environment: dict[str, str], options: tuple[str, ...], plain_linears: str = "") -> Served:
    model = folder.parent / "model"
    with temporary_folder() as temporary:
        environment = {**environment, "TMPDIR": str(temporary)}
        with serving(model, folder, environment, options=options, plain_linears=plain_linears) as server:
            got = answers(server)
            status = server.interrupt()
            orphans = server.remaining_processes()
        return Served(got, status, orphans, _kinds(temporary))


def _kinds(folder: Path) -> set[str]:
    """Return the names of what lies in a folder, without what makes each unique."""
    return {re.sub(r"[0-9a-f-]{8,}", "*", path.name) for path in folder.iterdir()}


@pytest.fixture(scope="module", params=["eager", pytest.param("compiled", marks=pytest.mark.slow)])
def pair(request: pytest.FixtureRequest, folder: Path) -> Pair:
    """Return both servers' answers, in both modes."""
    here = folder / f"server-{request.param}"
    MODEL.save(here / "model")
    options = MODES[request.param]
    control = _serve(here / "control", {}, options, plain_linears=SERIES)
    shared, samples = watch(
        here / "shared",
        TOKENS,
        lambda environment: _serve(here / "shared", environment, options),
        SWTRACE_SERIES=SERIES,
    )
    return Pair(control, shared, samples, here / "shared" / "rings", request.param == "compiled")


def test_answers_are_equal(pair: Pair) -> None:
    """Requests one by one, streamed, and several at once get the answers that a server without sharing gives."""
    shared, control = dict(pair.shared.answers), dict(pair.control.answers)
    assert all(len(tokens) == TOKENS for way in shared.values() for tokens in way)
    if not pair.compiled:
        # Where prompts meet in an eager batch, vLLM's MLA on CPU answers otherwise, sharing or not.
        del shared["at once"], control["at once"]
    assert shared == control
    assert shared["streamed"] == shared["alone"]


def test_the_tensor_parallel_group_shares(pair: Pair) -> None:
    """The series holds the linear of every layer once over both ranks, beside their windows."""
    infos = [labels for labels, _ in pair.samples["swtrace_series_info"]]
    assert {(info["series"], info["rank"], info["group_size"], info["model"]) for info in infos} == {
        (SERIES, "0", "2", "tiny"),
        (SERIES, "1", "2", "tiny"),
    }
    owned = by_rank(pair.samples, "swtrace_series_bytes", kind="owned")
    assert sum(owned.values()) == MODEL.layers * MODEL.layer_bytes


def test_ranks_stay_in_lockstep(pair: Pair) -> None:
    """Both ranks took the same steps, waited for each layer in each, and lost no record."""
    steps = by_rank(pair.samples, "swtrace_steps_total")
    assert steps[0] == steps[1] >= TOKENS
    assert by_rank(pair.samples, "swtrace_waits_total") == {rank: MODEL.layers * count for rank, count in steps.items()}
    assert sum(by_rank(pair.samples, "swtrace_ring_lost_records_total").values()) == 0


def test_interrupt_ends_everything(pair: Pair) -> None:
    """After Ctrl-C no process is left, and no file but the two rings, whose writers are gone."""
    assert pair.shared.status == pair.control.status == 0
    assert pair.shared.orphans == []
    assert pair.shared.left_files == pair.control.left_files
    rings = [RingReader.open(path) for path in pair.rings.iterdir()]
    assert sorted((ring.identity.rank, ring.alive()) for ring in rings) == [(0, False), (1, False)]
    for ring in rings:
        ring.close()
