"""SIGKILL of a writer at any instant loses no committed record, delivers no torn one, and keeps counts exact."""

from __future__ import annotations

import random
import time
from pathlib import Path

import numpy as np

from swtrace.trace import schema
from swtrace.trace.ring_reader import RingReader, RingStatistics
from tests.support.writer_process import Order, Writers, check, until

TRIALS = 200


def _slots(path: Path) -> np.ndarray:
    """Return the sequence numbers in a ring file, read without any of the code under test."""
    return np.fromfile(path, "<u8", offset=schema.HEADER_BYTES).reshape(-1, 8)[:, 7].astype(np.int64)


def _balanced(statistics: RingStatistics) -> bool:
    return statistics.written == statistics.delivered + statistics.lapped + statistics.damaged + statistics.pending


def test_two_hundred_kills_lose_no_committed_record(tmp_path: Path) -> None:
    """Writers killed 200 times at random instants leave everything committed readable, with exact counts."""
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")  # noqa: T201 - shown when the test fails
    rng = random.Random(seed)  # noqa: S311 - not a secret
    mid_record = lapped = 0
    with Writers() as writers:
        for trial in range(TRIALS):
            capacity = rng.choice((64, 256, 4096))
            pid, path = writers.start(Order(str(tmp_path), records=capacity, checked=trial % 4 == 0))
            # One reader reads a little and then stops while it is lapped (or not).
            with RingReader.open(path) as stopped:
                until(lambda: stopped.statistics().written > 0)
                early = stopped.read(rng.randrange(1, 64))
                check(early)
                spin = time.monotonic_ns() + rng.randrange(0, 4_000_000)
                while time.monotonic_ns() < spin:
                    pass
                writers.kill(pid)

                # GIVEN the truth, from the bytes left behind
                slots = _slots(path)
                written = int(slots.max())
                in_ring = np.sort(slots[slots > 0])
                mid_record += bool(written >= capacity and (slots == 0).any())

                # THEN the stopped reader delivers exactly what is still in the ring and accounts for the rest
                assert not stopped.alive()
                assert not stopped.closed()
                assert _balanced(stopped.statistics())
                late = stopped.read(1 << 20)
                check(late)
                wanted = in_ring[in_ring > (int(early["sequence"][-1]) if len(early) else 0)]
                assert late["sequence"].tolist() == wanted.tolist()
                after = stopped.statistics()
                delivered = len(early) + len(late)
                assert after == RingStatistics(written, delivered, written - delivered, 0, 0)
                lapped += after.lapped > 0

            # AND a new reader reads every record that is still in the ring
            with RingReader.open(path) as fresh:
                assert _balanced(fresh.statistics())
                records = fresh.read(1 << 20)
                check(records)
                assert records["sequence"].tolist() == in_ring.tolist()
                assert fresh.statistics() == RingStatistics(written, len(in_ring), written - len(in_ring), 0, 0)
            path.unlink()
    # The trials were effective: some hit the middle of a record, some lapped the stopped reader.
    assert mid_record > 0
    assert lapped > 0


def test_an_account_is_balanced_at_all_times_while_the_writer_runs(tmp_path: Path) -> None:
    """Written equals delivered plus lost plus pending whenever a reader asks, even while it is being lapped."""
    with Writers() as writers:
        _, path = writers.start(Order(str(tmp_path), records=64))
        with RingReader.open(path) as reader:
            before = 0
            while before < 300_000:
                statistics = reader.statistics()
                assert _balanced(statistics)
                assert statistics.written >= before
                assert 0 <= statistics.pending <= 64
                before = statistics.written
                check(reader.read(32))


def test_a_forked_child_keeps_no_lock_and_writes_nothing(tmp_path: Path) -> None:
    """A dead rank is seen as dead although a forked child lives on, and the child's events are discarded."""
    with Writers() as writers:
        pid, path = writers.start(Order(str(tmp_path), count=5, heir=True))
        # The child and the rank report in either order; the ring names the rank.
        answers = {pid, writers.answer()[0]}
        with RingReader.open(path) as reader:
            until(lambda: reader.statistics().written == 5)
            rank = next(p for p in answers if _parent(p) not in answers)
            (heir,) = answers - {rank}
            assert reader.alive()
            writers.kill(rank)
            assert Path(f"/proc/{heir}").exists()
            assert not reader.alive()
            check(reader.read())
            assert reader.statistics() == RingStatistics(5, 5, 0, 0, 0)
            writers.kill(heir)


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()[1])
