"""A rendered scrape equals, byte for byte, what ``prometheus_client`` renders for the same snapshot."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from swtrace.daemon.collector import METRICS, FactsRow, MetricRow, Rows, SnapshotCollector
from swtrace.daemon.exemplars import WaitExemplar
from swtrace.daemon.exposition import Exposition, _Families, number_text
from swtrace.daemon.observer import Observer
from swtrace.daemon.snapshot import Health
from swtrace.ledger.facts import Distribution
from swtrace.observing import HostRings
from swtrace.spans.delivery import SpanExport
from swtrace.spans.traces import Sampling
from swtrace.trace.identity import UntracedRank
from swtrace.trace.schema import Untimed
from tests.support.recorded_run import AS_PLANNED, RecordedRun, series_info

ACCEPTED = (
    "text/plain;version=0.0.4",
    "text/plain;version=1.0.0;escaping=allow-utf-8",
    "application/openmetrics-text;version=1.0.0",
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8",
    "application/openmetrics-text;version=1.0.0;escaping=dots",
)


class Renderers:
    """One long-lived exposition for each format, and the encoder that it has to match."""

    def __init__(self) -> None:
        self.pairs: list[tuple[Callable[[Collector], bytes], Exposition]] = []
        for accepted in ACCEPTED:
            encode, content_type = choose_encoder(accepted)
            self.pairs.append((encode, Exposition(encode, exemplars="openmetrics" in content_type)))

    def check(self, rows: Rows) -> str:
        """Fail if any format differs. Return the text of the last one."""
        expected = b""
        for encode, exposition in self.pairs:
            expected = encode(_Families(*(metric.family(rows.get(metric.about, ())) for metric in METRICS)))
            assert exposition.render(rows) == expected
        return expected.decode()


@contextmanager
def observed(directory: Path, *, down_shown_s: float = 300.0) -> Iterator[Callable[[], Rows]]:
    """Observe a folder of rings and yield a function that reads the rows of one snapshot."""
    spans = SpanExport([InMemorySpanExporter()], Sampling(share=1.0))
    rings = HostRings(directory, rescan_s=0)
    observer = Observer(rings, spans, down_shown_s=down_shown_s)
    observer.start()
    yield SnapshotCollector(observer.snapshot, observer.health).rows
    observer.stop(30)
    rings.close()
    spans.close(5)


def test_every_moment_of_a_folder_is_the_same_text(tmp_path: Path) -> None:
    """One exposition follows ranks that appear, are refused, run, write untimed steps, meet another run and end."""
    renderers = Renderers()
    odd = 'a"b\\c\nd %s {é} NaN\u2028\x85'
    with observed(tmp_path) as rows:
        renderers.check(rows())
        run = RecordedRun(tmp_path)
        renderers.check(rows())
        run.recorders[0].add_series(series_info(0, name=odd, refused=odd, window_count=0, owned_layers=0))
        run.recorders[1].add_series(series_info(1, name=odd, untraced=(UntracedRank(0, odd),)))
        run.write(3)
        text = renderers.check(rows())
        assert "trace_id=" in text  # an exemplar's
        run.write_untimed(Untimed.BUSY)
        run.write(20)
        renderers.check(rows())
        younger = RecordedRun(tmp_path, run_id=odd, planned=AS_PLANNED)
        younger.write(3)
        assert "run__id=" in renderers.check(rows())
        younger.recorders[0].add_series(series_info(0, start_layer=30))
        renderers.check(rows())
        run.close()
        renderers.check(rows())
        younger.close()
    with observed(tmp_path, down_shown_s=0) as rows:
        rows()
        renderers.check(rows())


def test_a_daemon_that_cannot_read_is_the_same_text() -> None:
    """Without a snapshot, only the metrics of the daemon have samples."""
    collector = SnapshotCollector(lambda: None, lambda: Health("no folder", 1_700_000_000_123_456_789, 3))
    text = Renderers().check(collector.rows())
    assert "swtrace__daemon__ready 0.0\n" in text


def test_lines_of_labels_that_are_gone_are_not_kept(tmp_path: Path) -> None:
    """An exposition keeps only the label sets of the last snapshot."""
    _encode, exposition = Renderers().pairs[0]
    run = RecordedRun(tmp_path)
    with observed(tmp_path) as rows:
        exposition.render(seen := rows())
    run.close()
    exposition.render({about: these[:1] for about, these in seen.items()})
    assert len(exposition._lines) == 4  # of the daemon, of a rank, of its series and of the transfers


COUNTS = st.integers(0, 2**70)
NUMBERS: st.SearchStrategy[Any] = st.one_of(st.integers(-(2**70), 2**70), st.floats().map(lambda number: number + 0.0))
"""No metric is -0.0."""


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> FactsRow:
    """A row of a real rank, to be changed."""
    directory = tmp_path_factory.mktemp("rings")
    run = RecordedRun(directory)
    run.write(3)
    with observed(directory) as rows:
        row = rows()[FactsRow][0]
    run.close()
    assert isinstance(row, FactsRow)
    return row


@st.composite
def changes(draw: st.DrawFn) -> dict[str, Any]:
    """Draw arbitrary totals."""
    bounds = (1_000, 5_000_000, 10**10)
    distributions = st.builds(Distribution, st.just(bounds), st.tuples(*[COUNTS] * 4), COUNTS)
    return {
        "stall": draw(distributions),
        "slack": draw(distributions),
        "sent_duration": draw(distributions),
        "bytes": draw(NUMBERS),
        "steps": draw(COUNTS),
        "waits": draw(st.dictionaries(st.text(), NUMBERS, max_size=4)),
        "cause_ns": draw(st.dictionaries(st.text(), COUNTS, max_size=4)),
        "step_duration": draw(st.dictionaries(st.text(), distributions, max_size=2)),
    }


HEX = st.text("0123456789abcdef", max_size=32)
EXEMPLARS = st.dictionaries(st.integers(0, 3), st.builds(WaitExemplar, COUNTS, COUNTS, HEX, COUNTS, HEX))
LABELS = st.dictionaries(st.sampled_from(["rank", "series", "run_id"]), st.text(), max_size=3)


@settings(max_examples=30)
@given(data=st.data())
def test_any_numbers_and_labels_are_the_same_text(series: FactsRow, data: st.DataObject) -> None:
    """Huge, tiny, negative and odd numbers, unknown keys and any text in labels, in three successive snapshots."""
    renderers = Renderers()
    labels = data.draw(LABELS)
    for _ in range(3):
        facts = replace(
            series.facts,
            totals=replace(series.facts.totals, **data.draw(changes())),
            last_stall_ns=data.draw(st.none() | NUMBERS),
        )
        row: MetricRow = replace(
            series, labels=labels, facts=facts, slowest=data.draw(EXEMPLARS), excess_share=data.draw(NUMBERS)
        )
        renderers.check({FactsRow: [row]})


@given(st.one_of(NUMBERS, st.booleans(), st.integers(10**5, 10**17)))
def test_a_number_is_the_same_text(number: float) -> None:
    """Whole numbers are formatted as by ``prometheus_client``."""
    assert number_text(number) == floatToGoString(number)  # type: ignore[no-untyped-call]
