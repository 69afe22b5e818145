"""One rank's end of a pull series: who is gone is logged, and layers are stored once."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from swtrace.errors import TransportError
from swtrace.series.pull.pull_transport import PullTransport
from swtrace.trace.share_folder import ShareFolder
from tests.support.moved import Moved


def end(path: Path, own: int) -> PullTransport:
    """Return one rank's end."""
    return PullTransport(ShareFolder(path / "pull-x", (0, 1), own, 0.05), own)


PAYLOAD = torch.arange(64, dtype=torch.uint8)


def test_a_payload_is_stored_once_if_processing_leaves_it_alone(tmp_path: Path) -> None:
    """What was loaded and what is stored are one file, which the reader sees at once."""
    owner, reader = end(tmp_path, 0), end(tmp_path, 1)
    owner.broadcast(PAYLOAD, Moved(0, 3))
    received = torch.zeros_like(PAYLOAD)
    reader.broadcast(received, Moved(0, 3))
    assert torch.equal(received, PAYLOAD)
    stored = owner.store(PAYLOAD.clone(), Moved(0, 3))
    assert torch.equal(stored, PAYLOAD)
    raw, layer = (tmp_path / "pull-x" / name for name in ("raw-3-0", "layer-3"))
    assert raw.stat().st_ino == layer.stat().st_ino
    assert owner.issue(received, Moved(0, 3)).done()
    owner.close()
    reader.close()
    assert list(tmp_path.iterdir()) == []


def test_a_processed_payload_is_stored_beside_what_was_loaded(tmp_path: Path) -> None:
    """Even if it has another size."""
    owner = end(tmp_path, 0)
    owner.broadcast(PAYLOAD, Moved(0))
    assert torch.equal(owner.store(PAYLOAD[:32] * 2, Moved(0)), PAYLOAD[:32] * 2)
    assert (tmp_path / "pull-x" / "raw-0-0").stat().st_size == 64
    assert (tmp_path / "pull-x" / "layer-0").stat().st_size == 32
    owner.close()


def test_an_owner_that_comes_back_uses_the_bytes_that_are_there(tmp_path: Path) -> None:
    """Others have mapped them; it is refused if it loaded others."""
    owner, reader = end(tmp_path, 0), end(tmp_path, 1)
    owner.broadcast(PAYLOAD, Moved(0))
    owner.store(PAYLOAD.clone(), Moved(0))
    inode = (tmp_path / "pull-x" / "layer-0").stat().st_ino
    owner.close()
    owner = end(tmp_path, 0)
    owner.broadcast(PAYLOAD, Moved(0))
    owner.store(PAYLOAD.clone(), Moved(0))
    assert (tmp_path / "pull-x" / "layer-0").stat().st_ino == inode
    owner.close()
    owner = end(tmp_path, 0)
    with pytest.raises(
        TransportError, match="loaded other weights than before its restart, which the others still use"
    ):
        owner.broadcast(PAYLOAD + 1, Moved(0))
    owner.close()
    reader.close()


def test_bytes_that_never_come_name_their_owner(tmp_path: Path) -> None:
    """Within the timeout."""
    reader = end(tmp_path, 1)
    with pytest.raises(TransportError, match=r"rank 0 did not start, or died within 0.05 s \(SWTRACE_TIMEOUT\)"):
        reader.broadcast(torch.zeros(8, dtype=torch.uint8), Moved(0))
    reader.close()


def test_owners_that_go_and_come_back_are_logged_once_each(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With what becomes of their layers."""
    owner, reader = end(tmp_path, 0), end(tmp_path, 1)
    reader._where, reader._owned[0] = "series 's', rank 1", 3
    with caplog.at_level(logging.INFO):
        reader._look_after_owners()
        owner._folder._close_descriptors()  # as if it had been killed
        reader._look_after_owners()
        reader._look_after_owners()
        owner = end(tmp_path, 0)
        reader._look_after_owners()
        owner.close()
        reader._look_after_owners()
    stays = "this rank goes on, because the 3 layers that rank 0 owns stay in shared memory"
    assert [(record.levelname, record.getMessage().partition("rank 1: ")[2]) for record in caplog.records] == [
        ("WARNING", f"rank 0 died; {stays}"),
        ("WARNING", "rank 0 is back"),
        ("INFO", f"rank 0 has left; {stays}"),
    ]
    reader.close()
