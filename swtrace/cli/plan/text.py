"""A plan on the terminal: the answer, a table and a plot of the front, and the settings to copy. It fits 80 columns."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from swtrace import units
from swtrace.cli.console import table
from swtrace.cli.plan import answer
from swtrace.cli.plan.planning import Question
from swtrace.cli.plan.plot import HIGH, LIMIT, LINE, LOW, POINT, Axis, plot
from swtrace.cli.plan.series_plan import Common, SeriesPlan, ToCopy, shares
from swtrace.cli.plan.source import Source
from swtrace.ledger.planning.prediction import Interval, Prediction
from swtrace.plan_file import CONFIDENCE
from swtrace.share import NONE

CHOSEN = "▶"
_LABEL_COLUMNS = 25
_MOST_COLUMNS = 120
_REFUSALS = 4
_TIME_UNITS = ((1e9, "s"), (1e6, "ms"), (1e3, "us"))


def print_plans(source: Source, plans: Sequence[SeriesPlan], question: Question, console: Console) -> None:
    """Print every plan of a source."""
    for number, plan in enumerate(plans):
        if number:
            console.print()
        _print_plan(plan, source.name, console)
    for note in answer.notes(source, plans, question):
        console.print()
        console.print(note, markup=False)


def _print_plan(plan: SeriesPlan, source: str, console: Console) -> None:
    console.print(Text(answer.answer(plan), style="bold"))
    console.print()
    for sentence in answer.details(plan, source):
        console.print(sentence, markup=False)
    shown = plan.shown
    if shown:
        console.print()
        console.print(_table(plan, shown))
        console.print()
        console.print(Text("\n".join(_plot(plan, shown, min(_MOST_COLUMNS, console.width)))))
    _print_refusals(plan, console)
    chosen = plan.chosen
    if chosen is not None and shares(chosen.candidate):
        to_copy = ToCopy.of(plan.key.name, chosen.candidate)
        exported = " ".join(f"{name}={shlex.quote(value)}" for name, value in (to_copy.environment or {}).items())
        if exported:
            console.print("\nTo use it, set this on every rank:")
            console.print(f"    {exported}", markup=False, soft_wrap=True)
        console.print("or give vLLM:" if exported else "\nTo use it, give vLLM, beside your other arguments:")
        console.print(f"    {shlex.join(to_copy.vllm_arguments)}", markup=False, soft_wrap=True)


def _table(plan: SeriesPlan, shown: Sequence[Prediction]) -> Table:
    factor, unit = _time_unit(shown)
    size_factor, size_unit = _size_unit(shown)
    common = Common.of(shown)
    choice = f"{CHOSEN} is the choice within" if plan.chosen is not None else "Nothing is within"
    caption = (
        f"{choice} {answer.budget(plan)}. Every other row that saves memory is the fastest of all that save as "
        f"much or more{f' ({common.said})' if common.said else ''}. k is the prefetch step. "
        f"In brackets: {100 * CONFIDENCE:.0f} % intervals."
    )
    heads = (
        "",
        f"{plan.terms.shared}\nlayers",
        "\nk",
        *(f"\n{name}" for name in common.columns),
        f"step\n{unit}",
        "stall\n%",
    )
    made = table(*heads, f"memory\n{size_unit}", f"saved\n{size_unit}", padding=(0, 1), caption=caption)
    digits = _digits(max(each.value for each in _known([each.step_ns for each in shown])) / factor)
    for each in shown:
        candidate, is_shared = each.candidate, shares(each.candidate)
        made.add_row(
            CHOSEN if each == plan.chosen else "",
            answer.layers(each) if is_shared else NONE,
            str(candidate.prefetch_step) if is_shared else units.UNKNOWN,
            *(str(getattr(candidate, name)) if is_shared else units.UNKNOWN for name in common.columns),
            _bracketed(each.step_ns, factor, digits),
            _bracketed(each.stall_ratio, 0.01, 1),
            f"{each.memory_bytes / size_factor:.2f}",
            f"{each.saved_bytes / size_factor:.2f}",
            style="bold" if each == plan.chosen else "",
        )
    return made


def _plot(plan: SeriesPlan, shown: Sequence[Prediction], width: int) -> list[str]:
    factor, unit = _time_unit(shown)
    columns = (width - _LABEL_COLUMNS - 4) // 2
    steps, stalls = [each.step_ns for each in shown], [each.stall_ratio for each in shown]
    step = Axis.over(f"step time, {unit}", _known(steps), columns, factor=factor)
    stall = Axis.over(
        "stall, % of step time",
        _known(stalls),
        columns,
        factor=0.01,
        from_zero=True,
        limit=plan.budget.stall_ratio,
    )
    labels = [
        f"{CHOSEN if each == plan.chosen else ' '} {units.size(each.saved_bytes):>8}  {_short(plan, each)}"
        for each in shown
    ]
    key = f"{POINT} predicted   {LOW}{LINE}{HIGH} {100 * CONFIDENCE:.0f} % interval"
    if stall.limit is not None:
        key += f"   {LIMIT} limit of stall" if stall.limit <= stall.high else ""
    return [*plot("  saved per rank", labels, (step, steps), (stall, stalls)), "", key]


def _short(plan: SeriesPlan, prediction: Prediction) -> str:
    if not shares(prediction.candidate):
        return f"not {plan.terms.shared}"
    return f"{answer.layers(prediction)}, k {prediction.candidate.prefetch_step}"


def _print_refusals(plan: SeriesPlan, console: Console) -> None:
    if not plan.refusals or not plan.shown:  # the answer has the reason
        return
    total = sum(plan.refusals.values())
    console.print(f"\nNot predicted: {total} of {units.counted(len(plan.predictions), 'candidate')}.")
    for why, count in list(plan.refusals.items())[:_REFUSALS]:
        console.print(f"  {count}: {escape(why)}")


def _bracketed(interval: Interval | None, factor: float, digits: int) -> str:
    if interval is None:
        return units.UNKNOWN
    value, low, high = (f"{each / factor:.{digits}f}" for each in (interval.value, interval.low, interval.high))
    return f"{value} ({low}-{high})"


def _digits(largest: float) -> int:
    return 2 if largest < 10 else 1 if largest < 1000 else 0  # noqa: PLR2004 - three or four digits


def _known(intervals: Sequence[Interval | None]) -> list[Interval]:
    return [each for each in intervals if each is not None]


def _time_unit(shown: Sequence[Prediction]) -> tuple[float, str]:
    longest = max(each.value for each in _known([each.step_ns for each in shown]))
    return next((pair for pair in _TIME_UNITS if longest >= pair[0]), _TIME_UNITS[-1])


def _size_unit(shown: Sequence[Prediction]) -> tuple[float, str]:
    text = units.size(max(each.memory_bytes for each in shown))
    unit = text.rpartition(" ")[2]
    return 1024.0 ** ("B", "KiB", "MiB", "GiB", "TiB").index(unit), unit
