"""A rank in a collective of vLLM is marked as such in its ring."""

from __future__ import annotations

import secrets
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from swtrace.cli.vllm_ranks import fork_ranks
from swtrace.series import recording
from swtrace.trace.recorder import Recorder
from swtrace.trace.ring_reader import RingReader
from swtrace.trace.schema import Collective
from swtrace.vllm.collectives import marked
from tests.support.vllm.collective_marks import names_in_ring
from tests.support.writer_process import identity


@pytest.mark.parametrize("size", [1, 2])
def test_a_collective_is_marked_while_it_runs(size: int, tmp_path: Path) -> None:
    """The mark is there within the call and gone after it, also if it raises. A group of one has no collectives."""
    recorder = Recorder.create(tmp_path, identity())
    before = recording.exchange(recorder)
    try:
        with RingReader.open(recorder.path) as reader:

            def call(_group: Any, value: int) -> int:
                assert reader.marks().collective is (Collective.GATHER if size > 1 else None)
                return 1 // value

            collective = marked(call, Collective.GATHER)
            assert collective(SimpleNamespace(world_size=size), 1) == 1
            with pytest.raises(ZeroDivisionError):
                collective(SimpleNamespace(world_size=size), 0)
            assert reader.marks().collective is None
    finally:
        recording.exchange(before)
        recorder.close()


@pytest.mark.vllm
def test_collectives_of_vllms_groups_are_marked(folder: Path) -> None:
    """A peer reads in a rank's ring which collective of its tensor parallel group the rank is in."""
    here = folder / "collectives"
    here.mkdir()
    name = f"collectives-{secrets.token_hex(4)}"
    environment = {"SWTRACE_DIR": str(here / "rings"), "VLLM_DIST_IDENT": name}
    try:
        found = fork_ranks(names_in_ring, (str(here),), here, ranks=2, environment=environment)
    finally:
        for left in Path("/dev/shm").glob(f"*{name}*"):  # vLLM's CPU build forgets these
            left.unlink()
    assert found == ([], ["BARRIER", "ALL_REDUCE"])
