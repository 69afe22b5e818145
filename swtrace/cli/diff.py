"""``swtrace diff A B``: what got better or worse from one recorded run to another, beyond chance."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from swtrace.cli import units
from swtrace.cli.console import data, narration, write_json
from swtrace.cli.exit_codes import ExitCode
from swtrace.cli.recorded import Salvage, opened, say_missing

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from swtrace.recording.difference import Difference, RecordingDifference, SeriesDifference

_LAYERS = 10
_MANYFOLD = 9.0
_STYLE = {"better": "green", "worse": "bold red", "same": "dim", "unknown": "dim"}


class StepPhase(StrEnum):
    """Which steps to compare."""

    PREFILL = "prefill"
    DECODE = "decode"
    MIXED = "mixed"
    DUMMY = "dummy"
    OTHER = "other"


def diff(
    a: Annotated[Path, typer.Argument(help="The recording to compare with.", show_default=False)],
    b: Annotated[Path, typer.Argument(help="The recording to judge.", show_default=False)],
    *,
    series: Annotated[str | None, typer.Option(help="Only this series.", metavar="NAME")] = None,
    phase: Annotated[
        StepPhase | None, typer.Option(help="Only steps of this phase.", metavar="|".join(StepPhase))
    ] = None,
    warmup: Annotated[int, typer.Option(help="Leave out so many first steps.", metavar="N", min=0)] = 3,
    salvage: Salvage = False,
    check: Annotated[bool, typer.Option("--check", help="Exit with 1 if anything got worse.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Compare two recordings, per series, rank and layer.

    A change is one only if a rank test (Mann-Whitney over blocks of steps, corrected for the number of comparisons)
    finds it beyond chance, and if it is large enough to matter. That the runs differ does not say why: compare runs
    made under equal conditions.
    """
    from swtrace.recording.difference import Change, difference
    from swtrace.trace.schema import Phase

    with opened([a], salvage=salvage) as first, opened([b], salvage=salvage) as second:
        wanted = None if phase is None else Phase[phase.name]
        found = difference(first, second, phase=wanted, warmup=warmup, series=series)
        if as_json:
            write_json(found.to_json())
        else:
            _print(found, data())
        for recording in (first, second):
            say_missing(recording, narration())
    if check and any(each.change is Change.WORSE for each in found.series):
        raise typer.Exit(ExitCode.FAILED)


def _print(found: RecordingDifference, console: Console) -> None:
    if not found.series:
        console.print("The recordings have no series in common.")
    for name in found.only_in_a:
        console.print(f"only in A: {name.name} from layer {name.start_layer} on {name.ranks} ranks", markup=False)
    for name in found.only_in_b:
        console.print(f"only in B: {name.name} from layer {name.start_layer} on {name.ranks} ranks", markup=False)
    for each in found.series:
        _print_series(each, console)


def _print_series(each: SeriesDifference, console: Console) -> None:
    console.print()
    console.print(
        f"[bold]series {each.series.name}[/]: A {each.a_steps} steps, B {each.b_steps} steps, "
        f"in blocks of {each.a_block_steps} and {each.b_block_steps}",
        soft_wrap=True,
    )
    table = _table("rank", "per step", "A", "B", "shift", "", "p", "")
    for one in each.ranks:
        table.add_row(str(one.rank), one.quantity, *_cells(one))
    for rank, (before, after) in enumerate(zip(each.a_stall_ratio, each.b_stall_ratio, strict=True)):
        table.add_row(str(rank), "stall ratio", units.ratio(before), units.ratio(after), "", "", "", "")
    console.print(table)
    changed = [one for one in each.layers if one.change.value in {"better", "worse"}]
    changed.sort(key=lambda one: -abs(one.shift_ns))
    if changed:
        console.print()
        layers = _table("rank", "layer", "stall A", "B", "shift", "", "p", "")
        for one in changed[:_LAYERS]:
            layers.add_row(str(one.rank), str(one.layer), *_cells(one))
        if len(changed) > _LAYERS:
            layers.caption = f"and {len(changed) - _LAYERS} more of {len(each.layers)} layers that stalled"
            layers.caption_justify = "left"
        console.print(layers)
    console.print()
    sentence = {
        "worse": "[bold red]B is worse.[/]",
        "better": "[bold green]B is better.[/]",
        "same": "[bold]No difference in step time or stall that is beyond chance and large enough to matter.[/]",
        "unknown": "[bold]Too few steps to tell.[/]",
    }
    console.print(sentence[each.change.value])


def _cells(one: Difference) -> tuple[str, ...]:
    style = _STYLE[one.change.value]
    return (
        units.seconds(one.a_ns * 1e-9),
        units.seconds(one.b_ns * 1e-9),
        units.seconds(one.shift_ns * 1e-9),
        _share(one.share),
        "-" if one.change.value == "unknown" else "< 1e-6" if one.p < 1e-6 else f"{one.p:.2g}",  # noqa: PLR2004
        f"[{style}]{one.change.value}[/]",
    )


def _share(share: float | None) -> str:
    if share is None:
        return ""
    return "> 10x" if share >= _MANYFOLD else f"{100 * share:+.1f} %"


def _table(*columns: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table
