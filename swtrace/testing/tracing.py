"""The fixture ``swtrace``: everything that series record while a test runs, in any process.

Environment variables switch recording on, so that processes started by the test record, too. The rings are in a
folder of their own. They are read on demand and removed when the test ends. No extra thread or process runs.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Self

from swtrace import units
from swtrace.session import RingsSession
from swtrace.trace.directory import memory_folder
from swtrace.units import counted

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
    from prometheus_client import CollectorRegistry

    from swtrace.trace.recorder import Recorder

DEFAULT_RECORDS = 1 << 17
"""Per rank: 8 MiB, 2,100 steps of 61 layers."""


class Tracing(RingsSession):
    """A session over a temporary folder, into which every series records inside the ``with`` block.

    A series reads its settings when it is created. One that a wider fixture created before the test is not recorded.

    Args:
        records: Capacity of each rank's ring.
        environment: Additional variables for the ranks.
    """

    def __init__(self, *, records: int = DEFAULT_RECORDS, environment: dict[str, str] | None = None) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="swtrace-test-", dir=memory_folder()))
        self.environment: dict[str, str] = {
            "SWTRACE": "1",
            "SWTRACE_DIR": str(self.directory),
            "SWTRACE_RING_RECORDS": str(records),
            **(environment or {}),
        }
        """Variables that make a process record here, for processes that do not inherit this one's environment."""
        self._before: dict[str, str | None] = {}
        self._recorder: Recorder | None = None
        self._simulated: list[Recorder] = []
        super().__init__(self.directory)

    def __repr__(self) -> str:
        """Return what was recorded: pytest shows it beside a failed assertion."""
        series = (
            f"{facts.key.name}: {counted(facts.steps, 'step')}, stall ratio "
            f"{units.ratio(max((rank.recent.stall_ratio or 0.0 for rank in facts.ranks), default=None))}"
            for facts in self.facts().series
        )
        return f"<swtrace fixture; {'; '.join(series) or 'nothing recorded'}>"

    def __enter__(self) -> Self:
        """Start recording."""
        # Each run generates its own id, so that two runs in one test do not replace each other.
        changed: dict[str, str | None] = {**self.environment, "SWTRACE_RUN_ID": None}
        self._before = {name: os.environ.get(name) for name in changed}
        _set(changed)
        series = _series_recording()
        if series is not None:
            self._recorder = series.exchange(None)
        return self

    def __exit__(self, *_error: object) -> None:
        """Stop recording and remove the rings."""
        series = _series_recording()
        if series is not None:
            mine = series.exchange(self._recorder)
            if mine is not None:
                mine.close()
        for recorder in self._simulated:
            recorder.close()
        _set(self._before)
        self.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def recorder(self, rank: int, run_id: str = "simulated") -> Recorder:
        """Return a ring for one of several ranks that run as threads of this process, as on an ideal channel."""
        from swtrace.trace.recorder import Recorder, identity_of_this_process

        identity = identity_of_this_process(run_id, rank, "simulated")
        recorder = Recorder.create(self.directory, identity, records=int(self.environment["SWTRACE_RING_RECORDS"]))
        self._simulated.append(recorder)
        return recorder

    def refused(self) -> dict[str, str]:
        """Return the series that were requested but are not shared, with the reason."""
        return {info.name: info.refused for rank in self.observe().ranks for info in rank.series if info.refused}

    def span_exporter(self, **selection: Any) -> InMemorySpanExporter:
        """Return OpenTelemetry's in-memory exporter with the spans of the selected steps."""
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

        exporter = InMemorySpanExporter()
        exporter.export(self.spans(**selection))
        return exporter

    def registry(self) -> CollectorRegistry:
        """Return a Prometheus registry with the metrics that a daemon would serve now."""
        from prometheus_client import CollectorRegistry

        from swtrace.daemon.collector import SnapshotCollector
        from swtrace.daemon.snapshot import Health, Snapshot
        from swtrace.spans.delivery import NoSpans

        now_ns = time.time_ns()
        snapshot = Snapshot(
            observation=self.observe(),
            taken_realtime_ns=now_ns,
            started_realtime_ns=now_ns,
            steps={},
            cursor=0,
            spans=NoSpans().statistics(),
            exemplars={},
        )
        made = CollectorRegistry(auto_describe=False)
        made.register(SnapshotCollector(lambda: snapshot, lambda: Health("", polled_realtime_ns=now_ns, poll_errors=0)))
        return made


def _series_recording() -> ModuleType | None:
    """Return the runtime's module for this process's ring, if the runtime is loaded."""
    return sys.modules.get("swtrace.series.recording")


def _set(variables: dict[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
