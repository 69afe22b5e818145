"""The report page is complete and self-contained, and shows the facts of the ledger."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest

from swtrace import units
from swtrace.report import svg_charts
from swtrace.session import Session
from swtrace.trace.schema import Clock
from swtrace.version import __version__
from tests.support.commands import checked
from tests.support.exported_run import STEPS
from tests.support.offload_arithmetic import Durations, Plan
from tests.support.offload_ring import offloading
from tests.support.page_checker import Checker
from tests.support.recorded_run import RecordedRun
from tests.support.simulated_recordings import record_rings


@pytest.fixture
def page(recording: Path, tmp_path: Path) -> str:
    """Return the page of a recording."""
    checked("report", recording, "-o", tmp_path / "report.html", "--warmup", "0")
    return (tmp_path / "report.html").read_text()


def test_the_page_is_whole_and_needs_nothing_else(page: str) -> None:
    """Every tag is closed, and nothing refers to anything external: no script, link, image, font or address."""
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    assert not {"script", "link", "img", "iframe"} & set(checker.counts)
    assert not re.search(r"https?://|url\(|@import|@font-face", page)


def test_the_page_says_what_the_ledger_says(page: str, session: Session) -> None:
    """The page has every sentence of the verdict, each rank's stall ratio and the slowest steps."""
    checker = Checker()
    checker.feed(page)
    text = "".join(checker.texts)
    (verdict,) = session.verdicts().values()
    for finding in verdict.findings:
        assert finding.sentence in text
        assert finding.advice in text
        assert all(each in text for each in finding.evidence)
    for recent in session.sums_by_rank().values():
        assert f"{100 * (recent.stall_ratio or 0):.1f} %" in text
    assert f"Covers {STEPS - 1} steps. Not covered, in the whole recording: 1 aborted." in text
    assert len(re.findall(r'aria-label="step \d', page)) == 3
    assert len(re.findall(r'<rect class="(?:heat\d|own)"', page)) == 3 * 5


def test_the_page_names_the_product_and_the_recording(page: str) -> None:
    """The first line says that this is swtrace's report, of which version, and on which file."""
    checker = Checker()
    checker.feed(page)
    text = "".join(checker.texts)
    assert text.index(f"swtrace {__version__} report on run.swrec") < text.index("run ")


def test_every_word_that_is_a_link_has_its_entry_of_the_glossary(page: str) -> None:
    """Links lead to entries on the page; an entry is the glossary's, and no entry is there twice or for nothing."""
    checker = Checker()
    checker.feed(page)
    assert len(checker.ids) == len(set(checker.ids))
    assert set(checker.links) == set(checker.ids)
    assert {"word-stall-ratio", "word-efficiency", "word-on-time", "word-transfer"} <= set(checker.ids)
    text = "".join(checker.texts)
    assert "Stall as a share of step time. This is the headline: what sharing costs." in text
    assert "It is always shown with the stall ratio, because" in text


def test_the_heat_map_has_a_scale(page: str, session: Session) -> None:
    """Beside the heat map stand its shades, from 0 to the largest mean stall of a layer, with its unit."""
    waits = session.waits()
    steps = session.sums_by_rank()
    most = max(
        waits["stall_ns"][(waits["rank"] == rank.rank) & (waits["layer"] == layer)].sum() / recent.steps
        for (_, rank), recent in steps.items()
        for layer in set(waits["layer"].tolist())
    )
    assert '<span>0</span><i class="heat0"></i>' in page
    assert f'<i class="heat8"></i><span>{units.milliseconds(most)}</span>' in page


def test_the_curves_stand_at_their_step_numbers(recording: Path, tmp_path: Path) -> None:
    """The axis of step time and stall begins and ends at the numbers of the first and the last step covered."""
    checked("report", recording, "-o", tmp_path / "report.html", "--steps", "4:9", "--warmup", "0")
    text = (tmp_path / "report.html").read_text()
    chart = text[text.index("step time and stall by step") :]
    labels = re.findall(r'left:([\d.]+)%">([^<]+)<', chart[: chart.index("numbers below the chart")])
    assert [(float(share), label) for share, label in labels] == [(25.0 * at, str(4 + at)) for at in range(5)]


@pytest.mark.parametrize("command", [("export", "-f", "csv"), ("report",)], ids=lambda command: command[0])
def test_an_existing_file_is_replaced_only_if_asked(
    recording: Path,
    tmp_path: Path,
    command: tuple[str, ...],
) -> None:
    """Without --force a file that exists stays as it is; a device is written to."""
    out = tmp_path / "out"
    out.write_text("before")
    done = checked(*command, recording, "-o", out, code=1)
    assert f"{out} already exists; use --force to replace it" in done.stderr
    assert out.read_text() == "before"
    checked(*command, recording, "-o", out, "--force")
    assert out.stat().st_size > 1000
    checked(*command, recording, "-o", "/dev/null")


def test_a_recording_without_timed_steps_has_a_page(tmp_path: Path) -> None:
    """The page of a run whose steps are all untimed says how many there are, and has no empty tables or charts."""
    run = RecordedRun(tmp_path / "rings", clock=Clock.DEVICE)
    run.write_untimed()
    run.close()
    record_rings(tmp_path / "rings", tmp_path / "run.swrec")
    checked("report", tmp_path / "run.swrec", "-o", tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "No finished step was timed" in re.sub(r"<[^>]*>", "", text)
    assert re.search(
        r"Covers 0 timed steps after 3 warm-up steps\. Not covered, in the whole recording: \d+ untimed", text
    )
    assert "<table" not in text
    assert "<svg" not in text


def test_what_is_missing_stands_at_the_top(recording: Path, tmp_path: Path) -> None:
    """A report of an incomplete recording says so before anything else."""
    cut = tmp_path / "cut.swrec"
    cut.write_bytes(recording.read_bytes()[:-10])
    checked("report", cut, "-o", tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert 0 < text.index("The recording ends within a frame: its last") < text.index("<h2")


def on_hosts(folder: Path, *hosts: str) -> str:
    """Return the page of a run whose ranks are on these hosts, as text without tags, with the labels of its charts."""
    run = RecordedRun(folder / "rings", ranks=len(hosts), hosts=hosts, ahead_ns=3600 * 10**9)
    run.write(10)
    run.close()
    record_rings(folder / "rings", folder / "run.swrec")
    checked("report", folder / "run.swrec", "-o", folder / "report.html", "--warmup", "0")
    page = (folder / "report.html").read_text()
    assert page.count("<title>computing</title>") == 3 * len(hosts)
    return re.sub(r"<[^>]*>", "", page)


def test_ranks_on_several_hosts_have_their_host(tmp_path: Path) -> None:
    """With several hosts, the page says which ranks are where, names each rank's host, and states the bound once."""
    text = on_hosts(tmp_path, "gpu-a", "gpu-a", "gpu-b", "gpu-b")
    assert "ranks 0-1 on gpu-a, 2-3 on gpu-b" in text
    assert "2 (gpu-b)6.00 ms" in text
    assert "rank 3 (gpu-b): 0.30 ms" in text
    assert text.count("may be off by 0.6") == 1
    assert "from its own begin" not in text


def test_steps_that_cannot_be_compared_are_shown_from_their_begins(tmp_path: Path) -> None:
    """If a host's clock is unknown, its ranks' steps are drawn from their own begin, which the page says."""
    text = on_hosts(tmp_path, *["gpu-a"] * 5, "gpu-b")  # with five layers, rank 5 is never a source
    assert "the clocks are not aligned, so each rank is shown from its own begin" in text
    assert "the clock of rank 5 (gpu-b)" in text


def test_what_was_exposed_of_a_copy_is_not_covered_by_copies_that_queue(tmp_path: Path) -> None:
    """Each copy is drawn while it moves, not while it queues, so no two overlap, and none lasts longer.

    With copies longer than compute, and two of them issued ahead, one moves while the next queues.
    """
    durations = Durations(copy_ns=2_500_000)
    step = offloading(tmp_path, Plan(group_size=1, prefetch_step=2, steps=6), durations)[-2]
    drawn = svg_charts.lanes(step)
    boxes = [
        (css, float(x), float(x) + float(width))
        for css, x, width in re.findall(r'<rect class="(hidden|exposed)" x="([\d.]+)" y="20" width="([\d.]+)"', drawn)
    ]
    assert {css for css, _, _ in boxes} == {"hidden", "exposed"}
    ordered = sorted((since, until) for _, since, until in boxes)
    assert all(until <= since + 0.4 for (_, until), (since, _) in pairwise(ordered))
    assert set(re.findall(r"copy, ([^<]*)", drawn)) == {"2.50 ms"}
