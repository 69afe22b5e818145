"""Events that ranks and their launcher report to the command: one JSON line each, through one pipe.

A line is shorter than ``PIPE_BUF``, so lines of different ranks never interleave.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, dataclass
from enum import StrEnum

_PIPE_BUF = 4096
_ROOM_FOR_REST = 512


class What(StrEnum):
    """What happened to a rank."""

    STARTED = "started"
    READY = "ready"
    """Post-processing is done, and the first step begins."""
    FAULT = "fault"
    """A fault begins to act on this rank: :attr:`RankReport.text` as it was asked for."""
    FINISHED = "finished"
    """All steps are done, and every output was as expected."""
    FAILED = "failed"
    """An error, in :attr:`RankReport.text`."""
    EXITED = "exited"
    """The process has ended; :attr:`RankReport.status` is its exit status, negative for a signal."""


@dataclass(frozen=True, slots=True)
class RankReport:
    """One event of a rank."""

    what: What
    rank: int
    pid: int = 0
    steps: int = 0
    checked: int = 0
    """Layer outputs that were compared with those of unshared weights."""
    status: int = 0
    unix_ns: int = 0
    """When a fault began."""
    text: str = ""

    def write(self) -> None:
        """Write the report to stdout in one write."""
        fields = asdict(self)
        fields["text"] = self.text.encode()[: _PIPE_BUF // 2 - _ROOM_FOR_REST].decode(errors="ignore")
        os.write(sys.stdout.fileno(), json.dumps(fields, ensure_ascii=False).encode() + b"\n")

    @classmethod
    def parse(cls, line: str) -> RankReport:
        """Return the report that :meth:`write` wrote."""
        fields = json.loads(line)
        return cls(**{**fields, "what": What(fields["what"])})
