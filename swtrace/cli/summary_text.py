"""A :class:`~swtrace.cli.summary.Summary` as text: two small tables per series, and its verdict in sentences.

Each table fits into 80 columns, with any number of ranks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from swtrace import units
from swtrace.cli.console import table
from swtrace.share import extent
from swtrace.trace.identity import terms

if TYPE_CHECKING:
    from rich.console import Console

    from swtrace.cli.summary import RingSummary, SeriesSummary, Summary


_STYLES = {"good": "green", "note": "", "warning": "yellow", "bad": "bold red"}


def print_summary(summary: Summary, console: Console, *, over: str = "the last {steps} steps") -> None:
    """Print every series of a run, or that there is none.

    Args:
        summary: The summary to print.
        console: The console to print to.
        over: The steps that means and ratios cover; ``{steps}`` is replaced by their number.
    """
    if not summary.series and not summary.refused:
        console.print("No series was recorded.")
    for refused in summary.refused:
        console.print(f"[bold]{escape(refused.name)}[/] is not shared on rank {refused.rank}: {escape(refused.reason)}")
    rings = {(ring.run_id, ring.rank): ring for ring in summary.rings}
    for series in summary.series:
        console.print()
        console.print(_title(series))
        hosts: dict[str, list[int]] = {}
        for rank in series.ranks:
            hosts.setdefault(rank.host, []).append(rank.rank)
        if len(hosts) > 1:
            console.print(f"on {len(hosts)} hosts: {escape(units.placed(hosts))}")
        console.print(_times(series, over))
        console.print()
        console.print(_memory_and_records(series, rings))
        console.print()
        console.print(_verdict(series))


def _title(series: SeriesSummary) -> str:
    layers = extent(series.layers, series.start_layer, series.stack_layers, terms(series.kind).shared)
    return (
        f"[bold]series {escape(series.name)}[/]  {layers}, {units.counted(len(series.group_ranks), 'rank')}, "
        f"{series.sharing}"
    )


def _times(series: SeriesSummary, over: str) -> Table:
    recent = max((rank.recent_steps for rank in series.ranks), default=0)
    timed = " that were timed" if any(sum(rank.untimed_steps.values()) for rank in series.ranks) else ""
    caption = f"means and ratios over {over.format(steps=recent)}{timed}"
    columns = ("rank", "steps", "step", "stall", "stall ratio", "on time", "efficiency", "bandwidth")
    times = table(*columns, caption=caption)
    for rank in series.ranks:
        times.add_row(
            str(rank.rank),
            str(rank.steps),
            units.seconds(rank.step_seconds),
            units.seconds(rank.stall_seconds),
            units.ratio(rank.stall_ratio),
            units.ratio(rank.on_time_rate),
            units.ratio(rank.efficiency),
            units.bandwidth(rank.bandwidth_bytes_per_second),
        )
    return times


def _memory_and_records(series: SeriesSummary, rings: dict[tuple[str, int], RingSummary]) -> Table:
    resident = series.stack_layers - len(series.layers)
    caption = ""
    if resident:
        caption = f"bytes of the {terms(series.kind).shared} layers; every rank also holds the other {resident} whole"
    columns = ("rank", "moved", "held", "replicated", "saved", "records", "lost", "pending")
    memory = table(*columns, caption=caption)
    for rank in series.ranks:
        ring = rings.get((series.run_id, rank.rank))
        memory.add_row(
            str(rank.rank),
            units.size(rank.broadcast_bytes),
            units.size(rank.held_bytes),
            units.size(rank.replicated_bytes),
            units.ratio(rank.saved_ratio),
            *((units.UNKNOWN,) * 3 if ring is None else (str(ring.written), str(ring.lost), str(ring.pending))),
        )
    return memory


def _verdict(series: SeriesSummary) -> Table:
    sentences = Table.grid(padding=(0, 1))
    for finding in series.findings:
        sentences.add_row(Text("•"), Text(finding.sentence, style=_STYLES[finding.level.word]))
        if finding.advice:
            sentences.add_row("", Text(finding.advice, style="dim"))
    return sentences
