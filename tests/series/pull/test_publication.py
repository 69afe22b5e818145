"""The broadcasts of start-up: what an owner publishes is what the others read."""

from __future__ import annotations

from pathlib import Path

import torch

from swtrace.series.pull.publication import Publication
from swtrace.trace.share_folder import ShareFolder
from tests.support.moved import Moved

PAYLOAD = torch.arange(64, dtype=torch.uint8)


def joined(path: Path, own: int) -> ShareFolder:
    """Return one rank's membership."""
    folder = ShareFolder(path / "pull-x", (0, 1), own, 0.05)
    folder.join()
    return folder


def test_each_broadcast_of_a_layer_has_a_file_of_its_own(tmp_path: Path) -> None:
    """A later one does not overwrite what a slower rank still has to read."""
    folders = joined(tmp_path, 0), joined(tmp_path, 1)
    owner, reader = (Publication(folder, own) for own, folder in enumerate(folders))
    owner.broadcast(PAYLOAD, Moved(0, 3))
    owner.broadcast(PAYLOAD + 1, Moved(0, 3))
    assert owner.last(Moved(0, 3)) == "raw-3-1"
    for more in range(2):
        received = torch.zeros_like(PAYLOAD)
        reader.broadcast(received, Moved(0, 3))
        assert torch.equal(received, PAYLOAD + more)
    for folder in folders:
        folder.leave()


def test_a_buffer_that_was_made_in_inference_mode_is_filled_outside_of_it(tmp_path: Path) -> None:
    """As torch itself would refuse to do."""
    folders = joined(tmp_path, 0), joined(tmp_path, 1)
    with torch.inference_mode():
        received = torch.zeros_like(PAYLOAD)
    Publication(folders[0], 0).broadcast(PAYLOAD, Moved(0))
    Publication(folders[1], 1).broadcast(received, Moved(0))
    assert torch.equal(received, PAYLOAD)
    for folder in folders:
        folder.leave()
