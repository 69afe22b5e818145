"""Real NCCL as far as one GPU goes: a communicator of one rank. Its broadcasts have no peer, but all of torch."""

from __future__ import annotations

import torch
from torch import distributed as dist

from swtrace.series import RankGroup
from swtrace.series.device.accelerator import TorchDevice
from swtrace.series.device.device_transport import CollectiveMover, DeviceTransport
from tests.support.moved import Moved
from tests.support.ranks import run_ranks

SPIN_NS = 300_000_000


def moves(rank: int, device: str) -> dict[str, object]:
    """Issue broadcasts eagerly and in a graph; return what there is to see."""
    from swtrace.series.device import kernels

    accelerator = TorchDevice(torch.device(device))
    group = RankGroup((rank,), 0, dist.new_group([rank], backend="nccl"))
    mover = CollectiveMover(group, description="swtrace", timeout_s=60)
    transport = DeviceTransport(accelerator, mover, 4)
    content = torch.arange(1 << 16, device=device).to(torch.uint8)
    buffer = content.clone()
    bounds = torch.zeros(2, dtype=torch.int64, device=device)
    transport.broadcast(buffer, Moved(0))  # the communicator is made
    kernels.spin[(1,)](bounds, 0, num_warps=1)  # and the kernel compiled
    torch.cuda.synchronize()

    kernels.spin[(1,)](bounds, SPIN_NS, num_warps=1)
    operation = transport.issue(buffer, Moved(0))
    early = operation.done()
    operation.wait()
    torch.cuda.synchronize()

    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        transport.broadcast(buffer, Moved(0))
    for _ in range(10):
        graph.replay()
    torch.cuda.synchronize()
    found: dict[str, object] = {
        "name": transport.name,
        "gathered": mover.gather("it"),
        "done before its turn": early,
        "done": operation.done(),
        "equal": torch.equal(buffer, content),
    }
    transport.close()
    return found


def test_broadcasts_of_nccl_wait_for_their_turn_and_can_be_captured(device: torch.device) -> None:
    """Behind a spin on the issuing stream one is not done before it is over, and a graph of one can be replayed."""
    (found,) = run_ranks(1, moves, str(device))
    assert found == {"name": "nccl", "gathered": ["it"], "done before its turn": False, "done": True, "equal": True}
