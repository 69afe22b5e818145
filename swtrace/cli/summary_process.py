"""Reads a run's rings in a process of its own, and writes what it sees to stdout, one summary per line.

``python -m swtrace.cli.summary_process DIRECTORY RUN_ID``: a JSON line whenever the summary changed, at most
four a second. The end of stdin says that the run is over: then everything left in the rings is
read, the last line carries ``"final": true``, and the process ends.

A process of its own, because then it can be killed, stopped or slow, and neither the ranks nor the
command that waits for them notice. What it had read is not lost with it: the records are still in
the rings, and another reader begins at their start.
"""

from __future__ import annotations

import json
import select
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from swtrace.cli.child import Child, wait_for_lines
from swtrace.cli.summary import Summary
from swtrace.closing import Closing

POLL_S = 0.1
REPORT_S = 0.25
FINISH_S = 30.0
"""How long the last records may take to be read."""


@dataclass(frozen=True, slots=True)
class Report:
    """One line of the reader."""

    summary: Summary
    final: bool

    def line(self) -> str:
        """Return the report as a line of JSON."""
        return json.dumps({"final": self.final, "summary": self.summary.to_json()}, allow_nan=False)

    @classmethod
    def parse(cls, line: str) -> Report:
        """Return what :meth:`line` was called on."""
        document = json.loads(line)
        return cls(Summary.from_json(document["summary"]), final=document["final"])


class Reader(Closing):
    """The reader as its command sees it: the newest summary, and at the end the final one."""

    def __init__(self, directory: Path, run_id: str) -> None:
        """Start reading the rings of ``run_id`` in ``directory``."""
        self._arguments = (str(directory), run_id)
        self.child = self._start()
        self.summary: Summary | None = None
        self._final = False

    def poll(self) -> bool:
        """Take in what the reader has written; True if there is a newer summary."""
        fresh = False
        for line in self.child.lines():
            report = Report.parse(line)
            self.summary, self._final, fresh = report.summary, report.final, True
        return fresh

    def finish(self) -> Summary:
        """The run is over: return its final summary. If the reader died, another one reads the rings again."""
        for _ in range(2):
            self.child.close_input()
            deadline = time.monotonic() + FINISH_S
            while self.child.readable and time.monotonic() < deadline:
                wait_for_lines([self.child], POLL_S)
                self.poll()
            if self._final:
                break
            self.child.close()
            self.child = self._start()
        return self.summary or Summary((), (), ())

    def close(self) -> None:
        """End the reader."""
        self.child.close()

    def _start(self) -> Child:
        return Child.start("swtrace.cli.summary_process", self._arguments)


def _read(directory: Path, run_id: str) -> None:
    from swtrace.cli.summary import summarise
    from swtrace.observing import watch_rings

    # Looks at the folder every time: the last look must find a ring that a short run made a moment ago.
    with watch_rings(directory, run_id=run_id, rescan_s=0.0) as roster:
        summary, reported, over = Summary((), (), ()), 0.0, False
        while not over:
            over = bool(select.select([sys.stdin], [], [], POLL_S)[0])
            roster.drain()
            if not over and time.monotonic() - reported >= REPORT_S:
                reported, before = time.monotonic(), summary
                summary = summarise(roster.observe(), in_depth=False)
                if summary != before:
                    _write(Report(summary, final=False))
        roster.ledger.flush()
        _write(Report(summarise(roster.observe()), final=True))


def _write(report: Report) -> None:
    sys.stdout.write(report.line() + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    _read(Path(sys.argv[1]), sys.argv[2])
