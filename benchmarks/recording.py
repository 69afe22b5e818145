"""Cost of recording: the events of one series without recording, with it, and as OpenTelemetry SDK spans.

All contestants see the same events in a step: for each layer the broadcast is issued, becomes ready and
is waited for; then the step ends. Off is the same code without a recorder, and its time is
subtracted from the others. The contestants take turns in short batches within one run, and their
medians are compared, so that a noisy machine affects all of them equally.

- `recording`: clock reads, window table and one binary record per layer, one per step;
- `checked`: the same with check words, as on machines that reorder stores;
- `opentelemetry`: one span for the broadcast, one for the wait, with the attributes that a record
  carries, and one for the step; batch processor, an exporter that discards, flushed outside
  the measured time. No `recording` figure includes reading, which happens in another process.

The loops do nothing else, so caches are warm, and nothing here observes when a broadcast is complete.
``benchmarks/tracing.py`` measures the cost beside a real forward.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Tracer, set_span_in_context
from opentelemetry.util.types import AttributeValue

from swtrace.trace.clocks import boot_id, now_ns
from swtrace.trace.identity import RankIdentity, SeriesInfo
from swtrace.trace.recorder import Recorder, SeriesRecorder
from swtrace.trace.schema import Clock, Observed

Batch = Callable[[int, int], None]
"""Runs the events of steps ``first .. first + count - 1``."""


class Discard(SpanExporter):
    """An exporter that discards spans."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Discard the spans."""
        del spans
        return SpanExportResult.SUCCESS


def recording_batch(series: SeriesRecorder | None, layers: int) -> Batch:
    """Return a function that records steps of a series as the runtime does. This rank receives all layers."""
    attributes = 0 if series is None else series.pack_attributes(Observed.CALLBACK, Clock.HOST, 0)
    # The runtime has these available.
    places = [(position, (position - 1) % layers, position & 1) for position in range(layers)]

    def run(first: int, count: int) -> None:
        for step in range(first, first + count):
            begin_ns = now_ns() if series is not None else 0
            for position, reach_position, window in places:
                if series is not None:
                    issued_ns = now_ns()
                    series.issued(position + 1, issued_ns)
                    token = series.window_issued(window, step, position, issued_ns)
                    ready_ns = now_ns()
                    series.window_ready(window, token, ready_ns)
                    wait_begin_ns = now_ns()
                    wait_end_ns = now_ns()
                    series.write_transfer(
                        issued_ns,
                        ready_ns,
                        wait_begin_ns,
                        wait_end_ns,
                        step,
                        step,
                        position,
                        reach_position,
                        window,
                        window,
                        attributes,
                        token,
                    )
            if series is not None:
                series.step(
                    begin_ns=begin_ns,
                    arrival_ns=begin_ns,
                    end_ns=now_ns(),
                    step=step,
                    tokens=512,
                    requests=8,
                    phase=2,
                    waits=layers,
                )

    return run


def span_batch(tracer: Tracer, layers: int) -> Batch:
    """Return a function that records the same events as spans."""

    def run(first: int, count: int) -> None:
        for step in range(first, first + count):
            root = tracer.start_span("swtrace.step", start_time=time.time_ns())
            context = set_span_in_context(root)
            for position in range(layers):
                issued_ns = time.time_ns()
                ready_ns = time.time_ns()
                wait_begin_ns = time.time_ns()
                wait_end_ns = time.time_ns()
                attributes: dict[str, AttributeValue] = {
                    "swtrace.series": "self_attn.o_proj",
                    "swtrace.layer": position,
                    "swtrace.step": step,
                    "swtrace.source_rank": position & 1,
                    "swtrace.window": position & 1,
                }
                transfer = tracer.start_span("swtrace.transfer", context, attributes=attributes, start_time=issued_ns)
                transfer.end(ready_ns)
                wait = tracer.start_span("swtrace.wait", context, attributes=attributes, start_time=wait_begin_ns)
                wait.end(wait_end_ns)
            root.set_attributes({"swtrace.step": step, "swtrace.tokens": 512, "swtrace.requests": 8})
            root.end(time.time_ns())

    return run


def measure(
    contestants: dict[str, Batch], *, batches: int, steps: int, flush: Callable[[], object]
) -> dict[str, float]:
    """Return each contestant's median time per step in ns. The contestants take turns."""
    samples: dict[str, list[float]] = {name: [] for name in contestants}
    for batch in range(-2, batches):  # two rounds to warm up
        for name, run in contestants.items():
            started = time.perf_counter_ns()
            run(max(batch, 0) * steps, steps)
            took = time.perf_counter_ns() - started
            flush()
            if batch >= 0:
                samples[name].append(took / steps)
    return {name: statistics.median(values) for name, values in samples.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=61)
    parser.add_argument("--batches", type=int, default=60, help="of each contestant")
    parser.add_argument("--steps", type=int, default=10, help="per batch")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()

    provider = TracerProvider(resource=Resource({"service.name": "swtrace"}), shutdown_on_exit=False)
    # Room for a whole batch, because a dropped span would look cheap.
    room = 4 * options.steps * (2 * options.layers + 1)
    provider.add_span_processor(BatchSpanProcessor(Discard(), max_queue_size=room, max_export_batch_size=512))

    memory = Path("/dev/shm")  # noqa: S108 - a fresh folder inside, as in production
    with tempfile.TemporaryDirectory(prefix="swtrace-bench-", dir=memory if memory.is_dir() else None) as folder:
        recorders = [_recorder(Path(folder), rank, checked=checked) for rank, checked in enumerate((False, True))]
        plain, checked = (recorder.add_series(_info(options.layers)) for recorder in recorders)
        contestants = {
            "off": recording_batch(None, options.layers),
            "recording": recording_batch(plain, options.layers),
            "checked": recording_batch(checked, options.layers),
            "opentelemetry": span_batch(provider.get_tracer("swtrace"), options.layers),
        }
        medians = measure(contestants, batches=options.batches, steps=options.steps, flush=provider.force_flush)
        for recorder in recorders:
            recorder.close()
    provider.shutdown()

    per_layer = {name: (value - medians["off"]) / options.layers for name, value in medians.items()}
    ratios = {name: per_layer["opentelemetry"] / per_layer[name] for name in ("recording", "checked")}
    if options.json:
        print(
            json.dumps(
                {
                    "layers": options.layers,
                    "python": platform.python_version(),
                    "machine": platform.machine(),
                    "step_ns": medians,
                    "per_layer_ns": per_layer,
                    "opentelemetry_ratio": ratios,
                }
            )
        )
        return
    print(f"{options.layers} layers, medians of {options.batches} batches of {options.steps} steps, taken in turns")
    print(f"{'':16}{'us per step':>14}{'us per layer and step':>24}{'OpenTelemetry costs':>22}")
    for name, step_ns in medians.items():
        ratio = f"{ratios[name]:.0f} times as much" if name in ratios else ""
        print(f"{name:16}{step_ns / 1000:>14.1f}{per_layer[name] / 1000:>24.3f}{ratio:>22}")


def _recorder(folder: Path, rank: int, *, checked: bool) -> Recorder:
    identity = RankIdentity("bench", rank, platform.node(), boot_id(), os.getpid(), time.time_ns())
    return Recorder.create(folder, identity, checked=checked)


def _info(layers: int) -> SeriesInfo:
    return SeriesInfo(
        name="self_attn.o_proj",
        start_layer=0,
        stack_layers=layers,
        layers=tuple(range(layers)),
        prefetch_step=1,
        windows="static",
        window_count=2,
        group_ranks=(0, 1),
        rank_in_group=0,
        transport="gloo",
        rendezvous="source",
        clock="host",
        layer_bytes=1 << 20,
        owned_layers=layers // 2,
    )


if __name__ == "__main__":
    main()
