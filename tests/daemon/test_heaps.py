"""The heaps of glibc, as the kernel shows them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from swtrace.daemon.heaps import return_free_memory
from tests.support.daemon_command import environment

PROGRAM = """
import ctypes, sys, threading
from swtrace.daemon.heaps import share_heaps
if sys.argv[1] == "shared":
    share_heaps()
malloc = ctypes.CDLL(None).malloc
gate = threading.Barrier(33)
def allocate():
    malloc(1000)
    gate.wait()
for _ in range(32):
    threading.Thread(target=allocate, daemon=True).start()
gate.wait()
ctypes.CDLL(None).malloc_stats()
"""


@pytest.mark.skipif(not Path("/lib64/ld-linux-x86-64.so.2").exists(), reason="needs glibc on x86-64")
def test_threads_share_two_heaps() -> None:
    """However many threads allocate at once, there are two heaps; without the call there are more."""
    heaps = {
        way: subprocess.run(
            [sys.executable, "-c", PROGRAM, way], env=environment(), capture_output=True, text=True, check=True
        ).stderr.count("Arena ")
        for way in ("shared", "own")
    }
    assert heaps["shared"] == 2 < heaps["own"]


def test_free_memory_is_returned_between_blocks_in_use() -> None:
    """Blocks freed between others that stay leave resident memory once it is given back."""
    blocks = [bytes(64 << 10) for _ in range(1000)]
    for index, block in enumerate(blocks):
        blocks[index] = block if index % 8 == 0 else b""
    before = _resident()
    return_free_memory()
    assert _resident() < before - (30 << 20)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * 4096
