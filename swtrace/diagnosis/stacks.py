"""Python stacks of ranks of this host, from py-spy, which reads another process's memory from outside."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass

from swtrace.diagnosis.process import ProcessUnseenError, stopped, writer_pid
from swtrace.errors import SwtraceError
from swtrace.observing.observation import ObservedRank

PROGRAM = "py-spy"
_PATIENCE_S = 20.0
_FORBIDDEN = ("permission denied", "operation not permitted", "eperm")


@dataclass(frozen=True, slots=True)
class RankStacks:
    """The stacks of all threads of one rank, or why they are unknown."""

    rank: int
    text: str = ""
    """What py-spy printed about its threads."""
    problem: str = ""
    """Why there is none, and what helps; empty if there is one."""


class _NoStacksError(SwtraceError):
    """py-spy cannot be run, or gave no stacks."""


def dump_stacks(ranks: Iterable[ObservedRank]) -> tuple[RankStacks, ...]:
    """Return the stacks of some ranks. Each takes a fraction of a second."""
    found = []
    for rank in ranks:
        number = rank.identity.rank
        try:
            found.append(RankStacks(number, text=_dump(writer_pid(rank), paused=stopped(rank))))
        except (ProcessUnseenError, _NoStacksError) as error:
            found.append(RankStacks(number, problem=str(error)))
    return tuple(found)


def _dump(pid: int, *, paused: bool) -> str:
    program = shutil.which(PROGRAM)
    if program is None:
        raise _NoStacksError("py-spy is not installed: pip install py-spy")
    # py-spy pauses a process to read it, and would wait for one that is stopped already.
    command = [program, "dump", *(["--nonblocking"] if paused else []), "--pid", str(pid)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise _NoStacksError(f"`{' '.join(command)}` gave no answer within {_PATIENCE_S:.0f} s") from error
    except OSError as error:
        raise _NoStacksError(f"{program} cannot be run: {error}") from error
    said = done.stderr.strip()
    if done.returncode and any(word in said.lower() for word in _FORBIDDEN):
        raise _NoStacksError(
            f"py-spy may not read process {pid}: run this as root, in a container with the capability SYS_PTRACE, or "
            "set kernel.yama.ptrace_scope to 0 on the host"
        )
    if done.returncode:
        raise _NoStacksError(f"py-spy failed: {said.splitlines()[-1] if said else f'exit code {done.returncode}'}")
    return done.stdout.partition("\n\n")[2].strip()
