"""``swtrace diff A B``: compare two recorded runs, and report statistically significant changes."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from swtrace import units
from swtrace.cli.arguments import PhaseName, not_empty, phase_option
from swtrace.cli.console import data, narration, table, write_json
from swtrace.cli.exit_codes import CommandError
from swtrace.cli.recorded import WARMUP, Salvage, Warmup, opened, print_missing
from swtrace.units import counted

if TYPE_CHECKING:
    from rich.console import Console

    from swtrace.recording.difference import Difference, RecordingDifference, SeriesDifference

_LAYERS = 10
_MANYFOLD = 9.0
_table = partial(table, padding=(0, 0))
_STYLE = {"better": "green", "worse": "bold red", "same": "dim", "unknown": "dim"}


def diff(
    a: Annotated[
        Path,
        typer.Argument(
            help="The recording to compare with.", metavar="A", show_default=False, parser=not_empty("A", Path)
        ),
    ],
    b: Annotated[
        Path,
        typer.Argument(help="The recording to judge.", metavar="B", show_default=False, parser=not_empty("B", Path)),
    ],
    *,
    series: Annotated[str | None, typer.Option(help="Only this series.", metavar="NAME")] = None,
    phase: Annotated[PhaseName | None, phase_option("Only steps of this phase")] = None,
    warmup: Warmup = WARMUP,
    salvage: Salvage = False,
    check: Annotated[
        bool, typer.Option("--check", help="Exit with 1 if step time or stall got worse, or could not be compared.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the comparison as JSON.")] = False,
) -> None:
    """Compare two recordings, per series, rank and layer.

    Reports a change only if it is statistically significant (Mann-Whitney over blocks of steps, corrected for the
    number of comparisons) and large enough to matter. It does not say why the runs differ: compare runs made under
    the same conditions.

    Fails if there is nothing to compare: no finished step, no such series or phase, or no series in common.
    """
    from swtrace.recording.difference import difference
    from swtrace.trace.schema import Phase

    with opened([a], salvage=salvage) as first, opened([b], salvage=salvage) as second:
        wanted = None if phase is None else Phase[phase.name]
        found = difference(first, second, phase=wanted, warmup=warmup, series=series)
        if as_json:
            write_json(found.to_json())
        else:
            _print(found, data())
        for recording in (first, second):
            print_missing(recording, narration())
    if not found.series:
        raise CommandError("nothing was compared: the recordings have no series in common")
    if check and found.failures:
        raise CommandError(f"--check failed: {'; '.join(found.failures)}")


def _print(found: RecordingDifference, console: Console) -> None:
    for letter, names in (("A", found.only_in_a), ("B", found.only_in_b)):
        for name in names:
            console.print(f"only in {letter}: {name}", markup=False)
    for each in found.series:
        _print_series(each, console)


def _print_series(each: SeriesDifference, console: Console) -> None:
    from rich.markup import escape

    console.print()
    only = "" if each.series.of_rank is None else f", rank {each.series.of_rank}"
    extents = each.a_extent if each.a_extent == each.b_extent else f"{each.a_extent} in A, {each.b_extent} in B"
    console.print(
        f"[bold]series {escape(each.series.name)}[/]{only}, {extents}: "
        f"A {counted(each.a_steps, 'step')}, B {counted(each.b_steps, 'step')}, "
        f"in blocks of {each.a_block_steps} and {each.b_block_steps}",
        soft_wrap=True,
    )
    medians = _table(
        "rank", "per step", "A", "B", "shift", "", "95 % of it", "", caption="medians over blocks of steps"
    )
    for one in each.ranks:
        medians.add_row(
            escape(each.named(one.rank)), one.quantity, *_medians(one), *_shift(one)[:2], _interval(one), _shift(one)[2]
        )
    console.print(medians)
    console.print()
    means = _table("rank", "step A", "B", "stall A", "B", "stall ratio A", "B", caption="means over all steps")
    step_times, stalls = (
        [one for one in each.ranks if one.quantity == quantity] for quantity in ("step time", "stall")
    )
    for step, stall, *ratios in zip(step_times, stalls, each.a_stall_ratio, each.b_stall_ratio, strict=True):
        times = (step.a_mean_ns, step.b_mean_ns, stall.a_mean_ns, stall.b_mean_ns)
        means.add_row(
            escape(each.named(step.rank)), *(units.seconds(ns * 1e-9) for ns in times), *map(units.ratio, ratios)
        )
    console.print(means)
    changed = [one for one in each.layers if one.change.value in {"better", "worse"}]
    changed.sort(key=lambda one: -abs(one.shift_ns))
    if changed:
        console.print()
        more = f"; {counted(len(changed) - _LAYERS, 'more layer')} changed" if len(changed) > _LAYERS else ""
        layers = _table("rank", "layer", "stall A", "B", "shift", "", "", caption=f"medians over blocks of steps{more}")
        for one in changed[:_LAYERS]:
            layers.add_row(escape(each.named(one.rank)), str(one.layer), *_medians(one), *_shift(one))
        console.print(layers)
    console.print()
    console.print(_conclusion(each), soft_wrap=True)


def _conclusion(each: SeriesDifference) -> str:
    """Return a sentence about the changes of step time and of stall."""
    from rich.markup import escape

    changes = []
    for quantity in ("step time", "stall"):
        for change, words in (("worse", "higher"), ("better", "lower")):
            of = [one for one in each.judged if one.quantity == quantity and one.change.value == change]
            if of:
                most = max(of, key=lambda one: abs(one.shift_ns))
                rank = escape(each.named(most.rank))
                where = f"on rank {rank}" if len(of) == 1 else f"on {len(of)} ranks, most on rank {rank}"
                changes.append(f"{quantity} is {words} {where} ({', '.join(filter(None, _shift(most)[:2]))})")
    sentence = {
        "worse": "[bold red]B is worse:[/] ",
        "better": "[bold green]B is better:[/] ",
        "mixed": "[bold yellow]B is better and worse:[/] ",
        "same": "[bold]No significant difference in step time or stall that is large enough to matter.[/]",
        "unknown": "[bold]Too few steps to compare.[/]",
    }[each.change.value]
    return sentence + (f"{'; '.join(changes)}." if changes else "")


def _medians(one: Difference) -> tuple[str, str]:
    return units.seconds(one.a_ns * 1e-9), units.seconds(one.b_ns * 1e-9)


def _shift(one: Difference) -> tuple[str, str, str]:
    """Return the shift as a time, as a share, and as a word."""
    style = _STYLE[one.change.value]
    return _signed(one.shift_ns), _share(one.share), f"[{style}]{one.change.value}[/]"


def _interval(one: Difference) -> str:
    if one.interval_ns is None:
        return units.UNKNOWN
    low, high = (_signed(bound) for bound in one.interval_ns)
    same = low.rpartition(" ")[2] == high.rpartition(" ")[2]
    return f"{low.partition(' ')[0] if same else low} to {high}"


def _signed(ns: float) -> str:
    return f"{'+' if ns > 0 else ''}{units.seconds(ns * 1e-9)}"


def _share(share: float | None) -> str:
    if share is None:
        return ""
    return "> 10x" if share >= _MANYFOLD else f"{100 * share:+.1f} %"
