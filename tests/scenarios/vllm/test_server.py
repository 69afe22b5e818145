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
from tests.support.finished_steps import finished_steps
from tests.support.span_receiver import ReceivedSpan, SpanReceiver
from tests.support.vllm.pipeline import generate_one_by_one, unique_rendezvous
from tests.support.vllm.server import PROMPTS, TOKENS, answers, serving, temporary_folder
from tests.support.vllm.shared_runs import Samples, by_rank, watch
from tests.support.vllm.tiny_models import TinyDeepSeek

pytestmark = [pytest.mark.vllm, pytest.mark.mla]

SERIES = "self_attn.fused_qkv_a_proj"
MODEL = TinyDeepSeek()
TRACE, SPAN = 0x4BF92F3577B34DA6A3CE929D0E0E4736, 0x00F067AA0BA902B7
TRACEPARENT = f"00-{TRACE:032x}-{SPAN:016x}-01"
"""The client's span, in whose context it sends all of its requests."""
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
    requests: tuple[ReceivedSpan, ...]
    """vLLM's own spans of the requests to the server with sharing."""


def _serve(
    folder: Path,
    environment: dict[str, str],
    options: tuple[str, ...],
    *,
    plain_linears: str = "",
    traceparent: str = "",
) -> Served:
    model = folder.parent / "model"
    with temporary_folder() as temporary:
        environment = {**environment, "TMPDIR": str(temporary)}
        with serving(
            model, folder, environment, options=options, plain_linears=plain_linears, traceparent=traceparent
        ) as server:
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
    receiver = SpanReceiver()
    traced = (*options, "--otlp-traces-endpoint", f"{receiver.endpoint}/v1/traces")
    shared, samples = watch(
        here / "shared",
        TOKENS,
        lambda environment: _serve(here / "shared", environment, traced, traceparent=TRACEPARENT),
        SWTRACE_SERIES=SERIES,
        OTEL_EXPORTER_OTLP_TRACES_PROTOCOL="http/protobuf",
    )
    receiver.close()
    requests = tuple(span for span in receiver.spans() if span.name == "llm_request")
    return Pair(expected, control, shared, samples, here / "shared" / "rings", requests)


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


def test_steps_link_to_the_requests_of_their_batch(pair: Pair) -> None:
    """VLLM's spans of the requests and the links of every timed step on both ranks lead to the client's span."""
    assert len(pair.requests) == 4 * len(PROMPTS)
    assert {(span.trace_id, span.parent_span_id) for span in pair.requests} == {
        (TRACE.to_bytes(16, "big"), SPAN.to_bytes(8, "big"))
    }
    serving_steps = [step for step in finished_steps(pair.rings, flush=True) if step.requests.any()]
    assert len(serving_steps) >= TOKENS
    for step in serving_steps:
        assert step.links == tuple(((TRACE, SPAN),) * int(requests) for requests in step.requests)


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
