"""Fork the demo's ranks: ``python -m swtrace.cli.demo.launcher DIALS RENDEZVOUS``.

torch is imported once, before the forks, because on a busy machine every import takes seconds. No
process of the demo outlives the one that started it.
"""

from __future__ import annotations

import math
import mmap
import os
import signal
import sys
import time
import traceback
from pathlib import Path

from swtrace.cli.child import end_with_parent
from swtrace.cli.demo.demo_rank import run_rank
from swtrace.cli.demo.lost_ranks import LostRanks
from swtrace.cli.demo.report_lines import RankReport, What
from swtrace.cli.demo.scenarios import Dials, Transport
from swtrace.cli.exit_codes import ExitCode
from swtrace.settings import Settings
from swtrace.trace.share_folder import dead_folders, remove

_GRACE_S = 20.0
"""Time for the other ranks to notice that a rank is lost. gloo notices a closed connection at once. Ranks that pull go
on instead."""
_POLL_S = 0.02


def _main() -> None:
    dials, rendezvous = Dials.from_json(sys.argv[1]), Path(sys.argv[2])
    import torch.distributed  # noqa: F401 (shared by all ranks)

    import swtrace.series  # noqa: F401

    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    ranks: dict[int, int] = {}
    lost = LostRanks(mmap.mmap(-1, dials.ranks))
    try:
        for rank in range(dials.ranks):
            pid = _fork(dials, rank, rendezvous, lost)
            ranks[pid] = rank
            RankReport(What.STARTED, rank, pid=pid).write()
        _wait(ranks, lost, math.inf if dials.transport is Transport.PULL else _GRACE_S)
    finally:
        for pid in ranks:
            os.kill(pid, signal.SIGKILL)
        for pid in ranks:
            os.waitpid(pid, 0)
        for folder in dead_folders(Settings.from_environment().ring_directory()):
            remove(folder)


def _fork(dials: Dials, rank: int, rendezvous: Path, lost: LostRanks) -> int:
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    status: int = ExitCode.FAILED
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        end_with_parent(parent, signal.SIGKILL)
        status = run_rank(dials, rank, rendezvous, lost)
    except BaseException:  # noqa: BLE001 (a forked child must not unwind into its parent's frames)
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _wait(ranks: dict[int, int], lost: LostRanks, grace_s: float) -> None:
    """Reap every rank and remove it from ``ranks``. After a failure, give the others ``grace_s`` to exit."""
    deadline = math.inf
    while ranks and time.monotonic() < deadline:
        pid, wait_status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            time.sleep(_POLL_S)
            continue
        status = os.waitstatus_to_exitcode(wait_status)
        rank = ranks.pop(pid)
        RankReport(What.EXITED, rank, pid=pid, status=status).write()
        if status:
            lost.add(rank, died=status < 0)
            deadline = min(deadline, time.monotonic() + grace_s)
    for pid, rank in ranks.items():
        RankReport(
            What.FAILED, rank, pid=pid, text=f"killed, because it did not notice that {lost} and its group was lost"
        ).write()


if __name__ == "__main__":
    _main()
