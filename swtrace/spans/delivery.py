"""Deliver spans to a collector: a bounded queue of whole steps, and a thread that empties it.

Every span of a kept step is either exported, or dropped and counted by reason. After :meth:`SpanExport.close`, none
is left in the queue. Offering a step never blocks: if the queue is full, the whole step is dropped. Spans are built
in the export thread, so a dropped step costs nothing, and a dead collector delays only that thread.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SpanExporter, SpanExportResult

from swtrace.ledger.facts import StepFacts
from swtrace.spans.environment import DEFAULT_MAX_BATCH, DEFAULT_MAX_QUEUE, SpanSettings
from swtrace.spans.origins import Origins
from swtrace.spans.step_spans import StepSpans, span_count
from swtrace.spans.traces import Sampling

if TYPE_CHECKING:
    from swtrace.spans.encoding import SpanBatch

_log = logging.getLogger(__name__)

CANCELLED_S = 1.0
"""How long to wait for a thread whose export was cancelled. If it returns from gRPC while the interpreter ends, the
process aborts."""


class DropReason(StrEnum):
    """Why a span of a kept step did not reach a collector."""

    QUEUE_FULL = "queue_full"
    """Steps finish faster than they are exported, or the collector does not respond."""
    EXPORT_FAILED = "export_failed"
    """The exporter gave up on the batch or could not encode it."""
    SHUTDOWN = "shutdown"
    """The daemon shut down first."""


@dataclass(frozen=True, slots=True)
class ExportStatistics:
    """Counts of spans so far: offered = exported + dropped + queued, exactly."""

    exported: int
    dropped: dict[DropReason, int]
    queued: int
    """Waiting or being exported."""
    unsampled_steps: int
    """Steps that were not selected for export. They do not count as dropped."""


class SpanSink(Protocol):
    """Receives the finished steps of an observer."""

    def offer(self, step: StepFacts, origins: Origins) -> bool:
        """Accept a finished step, and return whether its spans are queued for export. Never block or raise."""

    def statistics(self) -> ExportStatistics:
        """Return the counts of spans so far."""

    def close(self, timeout_s: float) -> None:
        """Export the queued spans, for at most ``timeout_s``."""


class NoSpans:
    """The sink of a daemon without a configured exporter."""

    def offer(self, step: StepFacts, origins: Origins) -> bool:  # noqa: ARG002 (the protocol's)
        """Ignore the step."""
        return False

    def statistics(self) -> ExportStatistics:
        """Return zeros."""
        return ExportStatistics(exported=0, dropped=dict.fromkeys(DropReason, 0), queued=0, unsampled_steps=0)

    def close(self, timeout_s: float) -> None:
        """Do nothing."""


@dataclass(frozen=True, slots=True)
class _Entry:
    step: StepFacts
    origins: Origins
    spans: int


class SpanExport:
    """A queue of steps, and the thread that builds and exports their spans."""

    def __init__(
        self,
        exporters: Sequence[SpanExporter],
        sampling: Sampling,
        *,
        max_queue: int = DEFAULT_MAX_QUEUE,
        max_batch: int = DEFAULT_MAX_BATCH,
        delay_s: float = 1.0,
    ) -> None:
        """Start the thread. ``max_queue`` and ``max_batch`` count spans; larger steps than the queue are dropped."""
        self._exporters = tuple(exporters)
        self._sampling = sampling
        self._max_queue = max_queue
        self._max_batch = max_batch
        self._delay_s = delay_s
        self._changed = threading.Condition()
        self._queue: deque[_Entry] = deque()
        self._queued = 0
        self._exported = 0
        self._dropped = dict.fromkeys(DropReason, 0)
        self._unsampled_steps = 0
        self._closing = False
        self._aborted = False
        self._thread = threading.Thread(target=self._run, name="swtrace-spans", daemon=True)
        self._thread.start()

    def offer(self, step: StepFacts, origins: Origins) -> bool:
        """Queue a step if it is sampled and there is room for all its spans. Return whether it was queued."""
        if not self._sampling.keeps(step):
            with self._changed:
                self._unsampled_steps += 1
            return False
        entry = _Entry(step, origins, span_count(step))
        with self._changed:
            if self._closing:
                self._dropped[DropReason.SHUTDOWN] += entry.spans
                return False
            if self._queued + entry.spans > self._max_queue:
                self._dropped[DropReason.QUEUE_FULL] += entry.spans
                return False
            self._queue.append(entry)
            self._queued += entry.spans
            self._changed.notify()
        return True

    def statistics(self) -> ExportStatistics:
        """Return the counts of spans so far."""
        with self._changed:
            return ExportStatistics(self._exported, dict(self._dropped), self._queued, self._unsampled_steps)

    def close(self, timeout_s: float) -> None:
        """Export the queued spans for at most about ``timeout_s``. Drop and count the remaining ones."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(max(0.0, deadline - time.monotonic()))
        with self._changed:
            self._aborted = True
            late = self._thread.is_alive()
            if late:
                _log.warning("dropped %d spans: the collector took longer than %.1f s", self._queued, timeout_s)
                self._queue.clear()
                self._dropped[DropReason.SHUTDOWN] += self._queued
                self._queued = 0
        for exporter in self._exporters:  # also ends an export that waits for its next retry
            exporter.shutdown()
        self._thread.join(CANCELLED_S)

    def _run(self) -> None:
        from swtrace.spans.encoding import batches  # imports protobuf, which a daemon without a collector does not need

        while batch := self._next_batch():
            remaining = sum(entry.spans for entry in batch)
            built = [spans for entry in batch if (spans := self._build(entry)) is not None]
            for chunk in batches(built, self._max_batch):
                delivered = not self._aborted and self._export(chunk)
                self._count(len(chunk), None if delivered else DropReason.EXPORT_FAILED)
                remaining -= len(chunk)
            self._count(remaining, DropReason.EXPORT_FAILED)

    def _next_batch(self) -> list[_Entry]:
        """Wait until a batch is full or has waited long enough. Return an empty list if closed and nothing is left."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closing)
            self._changed.wait_for(lambda: self._queued >= self._max_batch or self._closing, self._delay_s)
            batch: list[_Entry] = []
            spans = 0
            while self._queue and (not batch or spans + self._queue[0].spans <= self._max_batch):
                batch.append(self._queue.popleft())
                spans += batch[-1].spans
            return batch

    def _build(self, entry: _Entry) -> StepSpans | None:
        """Return the spans of an entry; None if they cannot be made, for example because a record is damaged."""
        try:
            return StepSpans(entry.step, entry.origins)
        except Exception:  # noqa: BLE001 (one bad step must not end the export of all others)
            _log.exception("cannot make the spans of step %d of series %s", entry.step.step, entry.step.series.name)
            return None

    def _export(self, spans: SpanBatch) -> bool:
        """Pass a batch to every exporter. Return whether all of them accepted it."""
        delivered = True
        for exporter in self._exporters:
            try:
                delivered &= exporter.export(spans) is SpanExportResult.SUCCESS
            except Exception:  # noqa: BLE001 (an encoder may raise anything)
                _log.exception("cannot export %d spans", len(spans))
                delivered = False
        return delivered

    def _count(self, spans: int, reason: DropReason | None) -> None:
        """Count queued spans as exported or dropped, unless :meth:`close` has already counted them."""
        with self._changed:
            if self._aborted:
                return
            self._queued -= spans
            if reason is None:
                self._exported += spans
            else:
                self._dropped[reason] += spans


def make_span_sink(settings: SpanSettings) -> SpanSink:
    """Return the span sink that the settings ask for."""
    if not settings.exporters:
        return NoSpans()
    from swtrace.spans.exporters import otlp_exporter

    exporters = [
        ConsoleSpanExporter() if name == "console" else otlp_exporter(None, settings.protocol)
        for name in settings.exporters
    ]
    return SpanExport(
        exporters,
        Sampling(settings.sample, settings.slow_step_ns),
        max_queue=settings.max_queue,
        max_batch=settings.max_batch,
        delay_s=settings.delay_s,
    )
