"""All ranks describe the same series before anything is broadcast, or raise the same error."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from swtrace.errors import DisagreementError, OrderError, RegistrationError, RingCreateError
from swtrace.series import RankGroup, Series
from swtrace.series.agreement import TracingOutcome, require_equal, settle_tracing
from swtrace.series.ideal import IdealChannel, IdealTransport
from swtrace.trace.identity import UntracedRank
from swtrace.trace.recorder import Recorder
from tests.support.ranks import run_ranks
from tests.support.stacks import Stack, plain_linear, true_weights
from tests.support.writer_process import identity


def test_missing_layers_are_named_on_all_ranks() -> None:
    """If a layer was never registered, every rank says so before anything is broadcast."""

    def program(transport: IdealTransport) -> None:
        series = Series("s", transport.group, 0, 4, transport=transport)
        for layer_idx in (0, 2):
            series.register(layer_idx, plain_linear(0))
        with pytest.raises(OrderError, match=r"layers 1, 3 were never registered"):
            series.reach(0)
        with pytest.raises(RegistrationError, match=r"layers 1, 3 were never registered"):
            series.post_process()

    IdealChannel(2).run(program)


@pytest.mark.parametrize(
    ("difference", "message"),
    [
        ({"name": "t"}, r"name: rank 0 has s; rank 1 has t"),
        ({"end_layer": 6}, r"stack layers: rank 0 has 5; rank 1 has 6"),
        ({"layers": (0, 2, 4)}, r"shared layers: rank 0 has 0-4; rank 1 has 0-4:2"),
        ({"prefetch_step": 2}, r"prefetch step: rank 0 has 1; rank 1 has 2"),
        ({"windows": "rolling"}, r"window policy: rank 0 has static; rank 1 has rolling"),
        ({"start_layer": 1, "end_layer": 6}, r"start layer: rank 0 has 0; rank 1 has 1"),
        ({"dtype": torch.float64}, r"tensors: rank 0 has weight float32\[16, 16\]; rank 1 has weight float64"),
        ({"time_every": 3}, r"time every: rank 0 has auto; rank 1 has 3"),
        ({"missing": 2}, r"missing layers: rank 0 has \(\); rank 1 has \(2,\)"),
    ],
)
def test_ranks_that_disagree_say_who_differs_in_what(difference: dict[str, object], message: str) -> None:
    """Ranks that describe different series all raise the same error, before a byte is broadcast."""

    def program(transport: IdealTransport) -> None:
        values: dict[str, object] = {"name": "s", "start_layer": 0, "end_layer": 5, "prefetch_step": 1}
        values |= {"windows": "static", "dtype": torch.float32, "missing": None}
        if transport.rank == 1:
            values |= difference
        dtype, missing = values.pop("dtype"), values.pop("missing")
        series = Series(group=transport.group, transport=transport, **values)  # type: ignore[arg-type]
        for layer_idx in range(values["start_layer"], values["end_layer"]):  # type: ignore[call-overload]
            if layer_idx != missing:
                series.register(layer_idx, plain_linear(0).to(dtype))  # type: ignore[call-overload]
        with pytest.raises(DisagreementError, match=message):
            series.post_process()

    IdealChannel(2).run(program)


def disagree(rank: int) -> str:
    """Describe another prefetch step on rank 1."""
    series = Series("s", RankGroup.world(), 0, 4, prefetch_step=rank)
    Stack(series, 0, true_weights(4))
    try:
        series.post_process()
    except DisagreementError as error:
        return str(error)
    return "agreed"


def test_real_ranks_that_disagree_get_an_error() -> None:
    """On gloo as well, ranks that describe different series all fail before the first broadcast."""
    for rank, message in enumerate(run_ranks(2, disagree)):
        assert message == (f"series 's', rank {rank}: the ranks disagree on prefetch step: rank 0 has 0; rank 1 has 1")


def test_ranks_under_different_run_ids_are_refused(tmp_path: Path) -> None:
    """A rank that already writes under another run id cannot join; the message names the setting."""

    def program(transport: IdealTransport) -> None:
        recorder = Recorder.create(tmp_path, identity(transport.rank, run_id=f"run{transport.rank}"))
        series = Series("s", transport.group, 0, 2, prefetch_step=0, transport=transport, recorder=recorder)
        Stack(series, 0, true_weights(2))
        with pytest.raises(Exception, match=r"run id \(set SWTRACE_RUN_ID .*: rank 0 has run0; rank 1 has run1"):
            series.post_process()
        recorder.close()

    IdealChannel(2).run(program)


def test_strict_on_any_rank_makes_a_missing_ring_an_error() -> None:
    """The error names the ranks that tried and could not, and not those that were set not to trace."""
    failed, silent = TracingOutcome("cannot make a ring", failed=True), TracingOutcome("SWTRACE_TRACE=0")
    recorded = TracingOutcome()
    assert settle_tracing("s", (4, 6, 7), (failed, recorded, silent)) == (
        UntracedRank(4, "cannot make a ring"),
        UntracedRank(7, "SWTRACE_TRACE=0"),
    )
    strict = TracingOutcome(strict=True)
    assert settle_tracing("s", (4, 6), (strict, silent)) == (UntracedRank(6, "SWTRACE_TRACE=0"),)
    with pytest.raises(RingCreateError, match=r"^s: SWTRACE_STRICT=1, .* traced: rank 4: cannot make a ring"):
        settle_tracing("s", (4, 6, 7), (failed, strict, silent))


def test_ranks_with_the_same_value_are_named_together() -> None:
    """Each value of a disagreement comes with all ranks that have it."""
    with pytest.raises(DisagreementError, match=r"on k: ranks 4, 7 have 1; rank 6 has 2$"):
        require_equal("s", (4, 6, 7), "k", (1, 2, 1))
