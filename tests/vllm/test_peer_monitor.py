"""A rank that is blocked in vLLM when a peer dies still logs which peer died, and which layer it had reached itself."""

from __future__ import annotations

import logging
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from swtrace.series import RankGroup, Series
from swtrace.series.operations import forget, reach, wait
from swtrace.series.recording import close, process_recorder, propose_run_id
from swtrace.trace.directory import SUFFIX
from swtrace.vllm import peer_monitor
from swtrace.vllm.peer_monitor import PeerMonitor, start_peer_monitor
from tests.support.patience import eventually, patience
from tests.support.ranks import ranks

LAYERS = 4


class Said(logging.Handler):
    """Collects what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the message."""
        self.lines.append(record.getMessage())


def program(rank: int, end: str, folder: str) -> list[str]:
    """Let rank 1 end while rank 0 is busy in the middle of a step, and return the log of rank 0."""
    said = Said()
    logging.getLogger("vllm.swtrace").addHandler(said)
    if end == "killed":  # its process ends, which the watch notices before it checks the rings again
        peer_monitor.PERIOD_S = 2 * patience()
    series = Series("o_proj", RankGroup.world(), 3, 3 + LAYERS, recorder=process_recorder)
    one = series.number
    layers: list[Any] = [nn.Linear(8, 8, bias=False) for _ in range(LAYERS)]
    for index, layer in enumerate(layers):
        series.register(3 + index, layer)
    series.post_process()
    monitor = start_peer_monitor(process_recorder(propose_run_id().run_id, rank))
    activation = layers[0].weight.new_zeros(1)
    for layer_idx in (3, 4):
        reach(activation, one, layer_idx)
        wait(activation, one, layer_idx)
    series._transport.gather(None)  # type: ignore[union-attr]  # both have reached layer 4
    watched = Path(folder, "watched")
    if rank == 1:
        eventually(watched.exists, "rank 0 to watch")
        if end == "removed, then killed":
            recorder = process_recorder("", rank)
            recorder.path.unlink()
            recorder.renew()
            watched.unlink()
            eventually(watched.exists, "rank 0 to watch again")
        if end.endswith("killed"):
            os.kill(os.getpid(), signal.SIGKILL)
        forget()
        close()
        os._exit(0)
    eventually(monitor.watched, "the watch to find rank 1's ring")
    watched.touch()
    if end == "removed, then killed":
        eventually(lambda: not watched.exists(), "rank 1 to make its ring again")
        eventually(lambda: monitor.watched().get(1, "").endswith(SUFFIX), "the watch to find it")
        watched.touch()
    eventually(lambda: not monitor.watched(), "the watch to let go of a rank that ended")
    return said.lines


def test_peers_that_pull_are_not_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their death does not end the series, which reports it, so the watch of a rank that only pulls ends at once."""
    monkeypatch.setattr(PeerMonitor, "_await_end", lambda _: pytest.fail("the watch goes on"))
    info = SimpleNamespace(rendezvous="receiver", group_ranks=(0, 1))
    series: Any = SimpleNamespace(number=1, post_processed=True, closed=False, info=info)
    identity = SimpleNamespace(run_id="r", rank=0)
    recorder: Any = SimpleNamespace(path=tmp_path / "ring", identity=identity)
    PeerMonitor((series,), recorder).watch()


@pytest.mark.parametrize("end", ["killed", "removed, then killed", "closed"])
def test_a_peer_that_dies_is_named_though_nobody_waits_for_it(end: str, tmp_path: Path) -> None:
    """A killed rank is named with the series and the last layer reached; one that ends cleanly is not.

    A rank that made its ring again after its removal is named only once it dies. A death is named at once.
    """
    with ranks(2, program, end, str(tmp_path), environment={"SWTRACE_DIR": str(tmp_path / "rings")}) as (survivor, _):
        said = survivor.result()
    if end == "closed":
        assert said == []
    else:
        (line,) = said
        assert line.startswith("swtrace: series 'o_proj', rank 0, layer 4: rank 1 died;")
