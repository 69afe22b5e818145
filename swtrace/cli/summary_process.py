"""Read a run's rings in a separate process, and write summaries to stdout, one per line.

``python -m swtrace.cli.summary_process DIRECTORY RUN_ID`` writes a JSON line when the summary has
changed, at most four per second. The end of stdin means that the run has ended. The process then reads
the remaining records, writes a last line with ``"final": true``, and exits.

It is a separate process so that it can be killed, stopped or slow without affecting the ranks or the
command. If it dies, no records are lost: they are still in the rings, and another reader starts from
their beginning.
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
"""Time limit for reading the last records."""


@dataclass(frozen=True, slots=True)
class Report:
    """One line from the reader."""

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
    """The command's side of the reader: the newest summary, and the final one at the end."""

    def __init__(self, directory: Path, run_id: str) -> None:
        """Start reading the rings of ``run_id`` in ``directory``."""
        self._arguments = (str(directory), run_id)
        self.child = self._start()
        self.summary: Summary | None = None
        self._final = False

    def poll(self) -> bool:
        """Read the reader's output; return whether there is a newer summary."""
        fresh = False
        for line in self.child.lines():
            report = Report.parse(line)
            self.summary, self._final, fresh = report.summary, report.final, True
        return fresh

    def finish(self) -> Summary:
        """End the run and return its final summary. If the reader died, another one reads the rings again."""
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

    # Rescan the folder every time: the last scan must find the ring of a short run.
    with watch_rings(directory, run_id=run_id, rescan_s=0.0) as roster:
        summary, reported, ended = Summary((), (), ()), 0.0, False
        while not ended:
            ended = bool(select.select([sys.stdin], [], [], POLL_S)[0])
            roster.drain()
            if not ended and time.monotonic() - reported >= REPORT_S:
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
