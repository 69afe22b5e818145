"""The OpenAI-compatible server on two tensor parallel ranks, which share the first projection of an MLA model."""

from __future__ import annotations

import getpass
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from swtrace.cli.vllm_ranks import fork_ranks
from swtrace.trace.ring_reader import RingReader
from tests.support.vllm.pipeline import generate_one_by_one, unique_rendezvous
from tests.support.vllm.server import PROMPTS, TOKENS, answers, serving, temporary_folder
from tests.support.vllm.shared_runs import Samples, by_rank, watch
from tests.support.vllm.tiny_models import TinyDeepSeek

pytestmark = [pytest.mark.vllm, pytest.mark.mla]

SERIES = "self_attn.fused_qkv_a_proj"
MODEL = TinyDeepSeek()
LEFT_BY_VLLM = {"*", f"torchinductor_{getpass.getuser()}", "vllm_dist_*"}
"""What an eager server that does not share leaves in ``TMPDIR``."""
MODES = {"eager": ("--enforce-eager",), "compiled": ()}


@dataclass(frozen=True, slots=True)
class Served:
    """One server's answers, and what it left behind after Ctrl-C."""

    answers: dict[str, list[tuple[int, ...]]]
    status: int
    orphans: list[int]
    left_files: set[str]


@dataclass(frozen=True, slots=True)
class Pair:
    """A server with sharing, and the answers without."""

    answers: dict[str, list[tuple[int, ...]]]
    """Answers without sharing. In eager mode they come from an engine without a server, which starts much faster."""
    control: Served | None
    shared: Served
    samples: Samples
    rings: Path


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
    """Return the names of the entries of a folder, without the part that makes each unique."""
    return {re.sub(r"[0-9a-f-]{8,}", "*", path.name) for path in folder.iterdir()}


@pytest.fixture(scope="module", params=["eager", pytest.param("compiled", marks=pytest.mark.slow)])
def pair(request: pytest.FixtureRequest, folder: Path) -> Pair:
    """Return the answers with and without sharing, in both modes."""
    here = folder / f"server-{request.param}"
    MODEL.save(here / "model")
    options = MODES[request.param]
    control = None
    if request.param == "eager":
        with unique_rendezvous(here) as rendezvous:
            generate = partial(generate_one_by_one, here / "model", rendezvous, PROMPTS, TOKENS, MODEL.layers)
            first, second = fork_ranks(generate, (), here, ranks=2)
        assert first == second
        expected = {"alone": list(first), "streamed": list(first)}
    else:
        control = _serve(here / "control", {}, options, plain_linears=SERIES)
        expected = control.answers
    shared, samples = watch(
        here / "shared",
        TOKENS,
        lambda environment: _serve(here / "shared", environment, options),
        SWTRACE_SERIES=SERIES,
    )
    return Pair(expected, control, shared, samples, here / "shared" / "rings")


def test_answers_are_equal(pair: Pair) -> None:
    """Requests one by one, streamed, and several at once get the same answers as without sharing.

    If several prompts meet in an eager batch, vLLM's MLA on CPU gives other answers, shared or not. Those are not
    compared.
    """
    shared = pair.shared.answers
    assert all(len(tokens) == TOKENS for way in shared.values() for tokens in way)
    assert {way: shared[way] for way in pair.answers} == pair.answers
    assert shared["streamed"] == shared["alone"]


def test_the_tensor_parallel_group_shares(pair: Pair) -> None:
    """Apart from windows, the two ranks together hold the linear of every layer once."""
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
    """After Ctrl-C only the two rings are left: no process, no other file, and no lock on the rings."""
    assert pair.shared.status == 0
    assert pair.shared.orphans == []
    assert pair.shared.left_files == (LEFT_BY_VLLM if pair.control is None else pair.control.left_files)
    rings = [RingReader.open(path) for path in pair.rings.iterdir()]
    assert sorted((ring.identity.rank, ring.alive()) for ring in rings) == [(0, False), (1, False)]
    for ring in rings:
        ring.close()
