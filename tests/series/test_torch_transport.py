"""On gloo, ready is observed by a completion callback at receivers, and never at sources; others are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from swtrace.errors import RegistrationError
from swtrace.series import RankGroup, torch_transport
from swtrace.trace import records as columns
from swtrace.trace.ring_reader import RingReader
from swtrace.trace.schema import Observed, TransferFlag
from tests.support.ranks import run_ranks
from tests.support.traced_series import LAYERS, read, traced_on_gloo, transfers


def test_on_gloo_ready_is_observed_and_instants_are_in_order(tmp_path: Path) -> None:
    """Real ranks agree on one run id; ready comes from the completion callback and never after wait end."""
    run_ranks(2, traced_on_gloo, environment={"SWTRACE_DIR": str(tmp_path)})
    run_ids = set()
    for rank in range(2):
        (path,) = (path for path in tmp_path.iterdir() if f"-{rank}-" in path.name)
        with RingReader.open(path) as reader:
            run_ids.add(reader.identity.run_id)
            assert reader.closed()
            records = reader.read()
            assert reader.series()[0].transport == "gloo"
        moves = transfers(records)
        received = moves[(moves["flags"] & ~np.uint8(TransferFlag.CROSSES_STEPS)) == 0]
        assert len(received) >= 50 * (LAYERS // 2) - 2
        assert (received["issued_ns"] <= received["ready_ns"]).all()
        assert (received["ready_ns"] <= received["wait_end_ns"]).all()
        assert (received["wait_begin_ns"] <= received["wait_end_ns"]).all()
        observed = columns.observed(received)
        assert set(observed) <= {Observed.CALLBACK, Observed.UPPER_BOUND}
        assert np.mean(observed == Observed.CALLBACK) > 0.5
        assert sorted(moves["operation"][(moves["flags"] & TransferFlag.PREFILLED) == 0]) == list(range(50 * LAYERS))
    assert len(run_ids) == 1


def test_on_gloo_the_completion_of_sends_is_not_observed(tmp_path: Path) -> None:
    """A source's records have no ready instant, but are not open for that reason."""
    run_ranks(2, traced_on_gloo, environment={"SWTRACE_DIR": str(tmp_path)})
    for rank in range(2):
        sent = transfers(read(tmp_path, rank)[1])
        sent = sent[(sent["flags"] & (TransferFlag.OWN | TransferFlag.PREFILLED)) == TransferFlag.OWN]
        assert len(sent) > 50
        assert set(columns.observed(sent)) == {Observed.NEVER}
        assert not sent["ready_ns"].any()


def test_a_backend_whose_wait_does_not_block_the_host_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Host clocks would show no stall; the error names the transport to use."""
    monkeypatch.setattr(torch_transport, "backend", lambda _group: "nccl")
    with pytest.raises(RegistrationError, match=r"transport nccl: its wait does not block .* use a DeviceTransport"):
        torch_transport.TorchTransport(RankGroup((0, 1), 0), description="swtrace", timeout_s=1.0)
