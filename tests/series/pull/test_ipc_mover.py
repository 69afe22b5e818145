"""Copies from another process's device memory, as far as they go without a device."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing import reductions

from swtrace.series.pull.ipc_mover import CudaMemory, IpcMover
from swtrace.trace.share_folder import ShareFolder
from tests.support.moved import Moved

PAYLOAD = torch.arange(64, dtype=torch.uint8)


class ListedMemory:
    """Handles that are numbers."""

    def __init__(self) -> None:
        self.exported: list[Tensor] = []
        self.copies = 0
        self.settled = 0

    def settle(self) -> None:
        """Count the call."""
        self.settled += 1

    def export(self, payload: Tensor) -> object:
        """Keep the payload, which must be complete."""
        assert self.settled
        self.exported.append(payload)
        return len(self.exported) - 1

    def open(self, handle: Any) -> Tensor:
        """Return the payload."""
        payload: Tensor = self.exported[handle]
        return payload

    def copy(self, buffer: Tensor, origin: Tensor) -> None:
        """Copy at once."""
        self.copies += 1
        buffer.copy_(origin)


@pytest.fixture
def movers(tmp_path: Path) -> tuple[IpcMover, IpcMover, ListedMemory]:
    """Return two ranks' movers of one memory."""
    memory = ListedMemory()
    folders = [ShareFolder(tmp_path / "pull-x", (0, 1), own, 0.05) for own in range(2)]
    for folder in folders:
        folder.join()
    owner, reader = (IpcMover(memory, folder, own) for own, folder in enumerate(folders))
    return owner, reader, memory


def test_a_reader_copies_and_an_owner_does_nothing(movers: tuple[IpcMover, IpcMover, ListedMemory]) -> None:
    """One copy for each move on the reader, and none on the owner."""
    owner, reader, memory = movers
    layer = Moved(0, 3)
    owner.publish(PAYLOAD, layer)
    reader.open(layer)
    received = torch.zeros_like(PAYLOAD)
    owner.move(PAYLOAD, layer)
    assert memory.copies == 0
    reader.move(received, layer)
    assert memory.copies == 1
    assert torch.equal(received, PAYLOAD)


def test_layers_are_closed_only_when_nothing_copies_from_them(
    movers: tuple[IpcMover, IpcMover, ListedMemory], tmp_path: Path
) -> None:
    """The reader waits for its copies; whatever happens to them, it leaves the folder."""
    owner, reader, memory = movers
    owner.publish(PAYLOAD, Moved(0))
    reader.open(Moved(0))
    owner.close()
    before = memory.settled

    def fail() -> None:
        memory.settled += 1
        assert torch.equal(reader.origin(Moved(0)), PAYLOAD)
        raise RuntimeError("the device is lost")

    memory.settle = fail  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="the device is lost"):
        reader.close()
    assert memory.settled == before + 1
    assert list(tmp_path.iterdir()) == []


def test_payloads_are_opened_on_this_processs_own_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever number its owner's device has: torch would copy between two devices on a stream of the owner's."""
    opened: list[tuple[int, bytes, int]] = []

    def new_shared(device: int, segment: bytes, nbytes: int, *_: object) -> torch.UntypedStorage:
        opened.append((device, segment, nbytes))
        return PAYLOAD.untyped_storage()

    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)
    monkeypatch.setattr(torch.storage.TypedStorage, "_new_shared_cuda", new_shared)
    # What reduce_tensor returns for 48 bytes, 16 bytes into a storage of 64 bytes on cuda:5.
    storage = (torch.storage.TypedStorage, torch.uint8, 5, b"segment", 64, 1 << 20)
    handle = (torch.Tensor, torch.Size([48]), (1,), 16, *storage, False, b"counters", 0, b"event", True)
    folder = ShareFolder(tmp_path / "pull-x", (0, 1), 0, 0.05)
    folder.join()
    folder.write("layer-0", handle)
    payload = CudaMemory(torch.device("cuda", 2)).open(folder.read("layer-0"))
    folder.leave()
    assert opened == [(2, b"segment", 64)]
    assert torch.equal(payload, PAYLOAD[16:])
    names = list(inspect.signature(reductions.rebuild_cuda_tensor).parameters)
    assert names[4:9] == ["storage_cls", "dtype", "storage_device", "storage_handle", "storage_size_bytes"]
