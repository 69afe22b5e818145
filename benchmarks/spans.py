"""Cost of spans in the daemon: spans per CPU second, made, encoded and sent to a receiver on this machine.

``python -m benchmarks.spans [--beside FOLDER]``, where FOLDER is another checkout to measure in turns with this one.

Steps come from a simulated schedule of eight ranks and 61 layers and have 984 spans each. They pass through the
daemon's queue and OpenTelemetry's exporters. The receiver discards them in its own process, so that its CPU time
does not count.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))  # for `tests.support`; swtrace itself comes from PYTHONPATH

RANKS, LAYERS, STEPS = 8, 61, 8
CPU_S = 1.0
"""Least CPU time of a measurement."""
WAYS = {
    "http/protobuf": ("http/protobuf", "none"),
    "http/protobuf, gzip": ("http/protobuf", "gzip"),
    "grpc": ("grpc", "none"),
    "grpc, gzip": ("grpc", "gzip"),
}


def main() -> None:
    """Measure in turns and print medians."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--beside", type=Path, help="another checkout, measured in turns with this one")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--measure", nargs=2, metavar=("WAY", "ENDPOINT"), help=argparse.SUPPRESS)
    parser.add_argument("--receive", metavar="PROTOCOL", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.receive:
        _receive(options.receive)
    elif options.measure:
        print(json.dumps(_measure(*options.measure)))
    else:
        _compare({"this": ROOT, **({"beside": options.beside.resolve()} if options.beside else {})}, options.rounds)


def _compare(trees: dict[str, Path], rounds: int) -> None:
    rates: dict[tuple[str, str], list[float]] = {}
    with _receiver("http/protobuf") as http, _receiver("grpc") as grpc:
        endpoints = {"http/protobuf": http, "grpc": grpc}
        for _ in range(rounds):
            for way, (protocol, _) in WAYS.items():
                for name, tree in trees.items():
                    command = [sys.executable, "-P", __file__, "--measure", way, endpoints[protocol]]
                    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
                    said = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True).stdout
                    rates.setdefault((way, name), []).append(json.loads(said))
                    print(way, name, f"{json.loads(said):,.0f}", file=sys.stderr)
    print(f"spans per CPU second: median (least to greatest) of {rounds}\n")
    for (way, name), each in rates.items():
        print(f"{way:21} {name:7} {statistics.median(each):9,.0f}   ({min(each):,.0f} to {max(each):,.0f})")


def _measure(way: str, endpoint: str) -> float:
    """Return the number of spans that this process exports per CPU second."""
    protocol, compression = WAYS[way]
    os.environ.update({"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_EXPORTER_OTLP_COMPRESSION": compression})
    os.environ["OTEL_EXPORTER_OTLP_TIMEOUT"] = "600"  # a busy machine is no failure
    from opentelemetry.sdk.resources import Resource

    from tests.support.feeding import feed, ledger
    from tests.support.simulated_rings import scenario

    delivery, environment, origins = _modules()
    schedule = scenario("stalled", ranks=RANKS, layers=LAYERS, steps=STEPS)
    made = ledger(schedule)
    feed(made, schedule)
    steps = made.take_steps()
    known = {
        rank: origins.SpanOrigin(Resource({"service.name": "swtrace", "rank": rank.rank}), 10**18, 10**18)
        for rank in steps[0].ranks
    }

    settings = environment.SpanSettings(exporters=("otlp",), protocol=protocol)
    sink = delivery.make_span_sink(settings)

    def export() -> int:
        for step in steps * 4:
            sink.offer(step, known)
        while sink.statistics().queued:
            time.sleep(0.01)
        outcome = sink.statistics()
        if any(outcome.dropped.values()):
            raise SystemExit(f"spans were dropped: {outcome}")
        return int(outcome.exported)

    first = last = export()  # connects, and imports lazily loaded modules
    begin = time.process_time()
    while (spent := time.process_time() - begin) < CPU_S:
        last = export()
    sink.close(1)
    return (last - first) / spent


def _modules() -> tuple[Any, Any, Any]:
    """Return the sink, its settings and the origins of ranks, in this checkout or an older one."""
    try:
        from swtrace.spans import delivery, environment, origins
    except ImportError:  # commit e961698
        from importlib import import_module

        names = ("swtrace.daemon.export", "swtrace.daemon.daemon_settings", "swtrace.daemon.spans")
        delivery, environment, origins = map(import_module, names)
    return delivery, environment, origins


@contextlib.contextmanager
def _receiver(protocol: str) -> Iterator[str]:
    """Run a receiver in another process and yield its endpoint."""
    command = [sys.executable, "-P", __file__, "--receive", protocol]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None  # noqa: S101
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.terminate()


def _receive(protocol: str) -> None:
    """Accept and discard requests forever."""
    if protocol == "grpc":
        import grpc

        discard = grpc.unary_unary_rpc_method_handler(lambda _request, _context: b"")
        service = "opentelemetry.proto.collector.trace.v1.TraceService"
        server = grpc.server(ThreadPoolExecutor(1))
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"Export": discard}),))
        print(server.add_insecure_port("127.0.0.1:0"), flush=True)
        server.start()
        server.wait_for_termination()
        return
    http = ThreadingHTTPServer(("127.0.0.1", 0), _Discards)
    print(http.server_address[1], flush=True)
    http.serve_forever()


class _Discards(BaseHTTPRequestHandler):
    """Answers every request, on one connection."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Discard the body."""
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


if __name__ == "__main__":
    main()
