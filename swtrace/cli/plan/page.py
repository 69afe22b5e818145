"""A plan as one self-contained HTML page, in the style of ``swtrace report``."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from html import escape

from swtrace import units
from swtrace.cli.plan import answer
from swtrace.cli.plan.planning import Question
from swtrace.cli.plan.series_plan import Common, SeriesPlan, ToCopy, shares
from swtrace.cli.plan.source import Source
from swtrace.ledger.planning.prediction import Prediction
from swtrace.plan_file import CONFIDENCE
from swtrace.report import svg_charts
from swtrace.report.page import style
from swtrace.report.word_links import WordLinks
from swtrace.version import __version__

_GIB = 1 << 30
_MIB = 1 << 20


def page(source: Source, plans: Sequence[SeriesPlan], question: Question) -> str:
    """Return the page."""
    words = WordLinks()
    sections = "".join(_series(plan, source.name, words, first=number == 0) for number, plan in enumerate(plans))
    notes = "".join(f"<p>{words.linked(note)}</p>" for note in (*answer.notes(source, plans, question), *source.notes))
    shown = [plan for plan in plans if plan.shown]
    reading = _how_to_read(words, comparable=any(not plan.info.offloaded for plan in shown)) if shown else ""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>swtrace plan: {escape(source.name)}</title>\n"
        f"<style>{style()}</style>\n</head>\n<body>\n"
        f'<p class="dim product"><b>swtrace</b> {__version__} plan from {escape(source.name)}</p>'
        f"<h1>{escape(source.model or 'What other settings would give')}</h1>"
        f'<p class="dim">run {escape(source.run_id)}</p>\n'
        f"{sections}\n{notes}\n{reading}\n{words.section()}\n</body>\n</html>\n"
    )


def _series(plan: SeriesPlan, source: str, words: WordLinks, *, first: bool) -> str:
    stage = f", from layer {plan.key.start_layer}" if plan.key.start_layer else ""
    chosen = plan.chosen
    level = "good" if chosen is not None and shares(chosen.candidate) else "warning"
    seen = {"run"}  # of a name such as run.swrec
    details = "".join(f"<p>{words.linked(said, seen)}</p>" for said in answer.details(plan, source))
    parts = [
        f'<h2 class="{"first" if first else ""}">{escape(_heading(plan) + stage)}</h2>',
        f'<ul class="verdict"><li class="{level}">{words.linked(answer.answer(plan), seen)}</li></ul>{details}',
    ]
    shown = plan.shown
    if chosen is not None and shares(chosen.candidate):
        parts.append(_to_copy(plan, chosen))
    if shown:
        parts += [_charts(plan, shown), _table(plan, shown, words)]
    if plan.refusals and shown:  # otherwise the answer has the reason
        reasons = "".join(
            f"<li>{units.counted(count, 'candidate')}: {words.linked(why)}</li>" for why, count in plan.refusals.items()
        )
        parts.append(f"<h3>Not predicted</h3><ul>{reasons}</ul>")
    return "\n".join(parts)


def _heading(plan: SeriesPlan) -> str:
    return f"Weight offloading on {answer.subject(plan)}" if plan.info.offloaded else answer.subject(plan)


def _to_copy(plan: SeriesPlan, chosen: Prediction) -> str:
    to_copy = ToCopy.of(plan.key.name, chosen.candidate)
    exported = "\n".join(f"{name}={shlex.quote(value)}" for name, value in (to_copy.environment or {}).items())
    variables = f'<p class="dim">On every rank:</p><pre>{escape(exported)}</pre>' if exported else ""
    heading = "Or as arguments of vLLM:" if exported else "As arguments of vLLM, beside the others:"
    arguments = f"<pre>{escape(shlex.join(to_copy.vllm_arguments))}</pre>"
    return f'<div class="keep"><h3>Settings to copy</h3>{variables}<p class="dim">{heading}</p>{arguments}</div>'


def _charts(plan: SeriesPlan, shown: Sequence[Prediction]) -> str:
    unit, name = (_GIB, "GiB") if max(abs(each.saved_bytes) for each in shown) >= _GIB else (_MIB, "MiB")

    def marks(figure: str) -> list[svg_charts.Mark]:
        found = []
        for each in shown:
            interval = getattr(each, figure)
            text = answer.duration(interval) if figure == "step_ns" else answer.stall(each)
            title = f"{_named(plan, each)}: saves {units.size(each.saved_bytes)}, {text}"
            css = "chosen" if each == plan.chosen else ""
            x = each.saved_bytes / unit
            found.append(svg_charts.Mark(css, title, x, interval.low, interval.value, interval.high))
        return found

    def below(value: float) -> str:
        return f"{value:g} {name}" if value else "0"

    step = svg_charts.intervals(
        "step time by saved memory", marks("step_ns"), left=svg_charts.short_duration, below=below
    )
    stall = svg_charts.intervals(
        "stall ratio by saved memory",
        marks("stall_ratio"),
        left=lambda value: f"{100 * value:g} %",
        below=below,
        from_zero=True,
        limit=plan.budget.stall_ratio,
    )
    limit = f" The dashed line is {answer.budget(plan)}." if 'class="limit"' in stall else ""
    return (
        f'<div class="keep"><h3>Step time, by memory saved per rank</h3>{step}</div>'
        f'<div class="keep"><h3>Stall as a share of step time, by memory saved per rank</h3>{stall}'
        f'<p class="dim">Dots are predictions, bars their {100 * CONFIDENCE:.0f} % intervals. '
        f"The large dot is the choice.{limit}</p></div>"
    )


def _table(plan: SeriesPlan, shown: Sequence[Prediction], words: WordLinks) -> str:
    common = Common.of(shown)
    heads = (
        "",
        "saved",
        "memory",
        f"layers {plan.terms.shared}",
        "prefetch step",
        *common.columns,
        "step time",
        "stall ratio",
    )
    head = "".join(f"<th>{words.linked(head)}</th>" for head in heads)
    rows = []
    for each in shown:
        candidate, shared = each.candidate, shares(each.candidate)
        cells = (
            "\u25b6" if each == plan.chosen else "",
            units.size(each.saved_bytes),
            units.size(each.memory_bytes),
            answer.layers(each) if shared else "none",
            str(candidate.prefetch_step) if shared else units.UNKNOWN,
            *(str(getattr(candidate, name)) if shared else units.UNKNOWN for name in common.columns),
            answer.duration(each.step_ns),
            answer.stall(each),
        )
        css = ' class="chosen"' if each == plan.chosen else ""
        rows.append(f"<tr{css}>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>")
    return (
        f'<h3>The front</h3><div class="scroll"><table class="plan"><tr>{head}</tr>{"".join(rows)}</table></div>'
        f'<p class="dim">&#9654; is the choice. {f"All {common.said}. " if common.said else ""}Memory is what the rank '
        f"that holds most would hold of these weights. Saved is per rank, compared with no {plan.terms.sharing}. "
        f"In brackets: {100 * CONFIDENCE:.0f} % intervals.</p>"
    )


def _how_to_read(words: WordLinks, *, comparable: bool) -> str:
    sentences = (
        "Each row of the table and each dot is a prediction for other settings. Nothing was changed in the run.",
        "Only the front is shown: settings that no others beat in both memory and step time.",
        "A row that saves nothing is added for comparison.",
        "Further down the table, a rank holds less, and a step takes longer.",
        f"Intervals are made to cover {100 * CONFIDENCE:.0f} % of what you would measure under the same load.",
        "The choice uses the upper end of the stall ratio's interval.",
        "For another load, such as another batch size, plan again.",
        *(["A run with SWTRACE_PLAN shows the prediction beside what it measures."] if comparable else []),
    )
    return f'<div class="keep"><h3>How to read this</h3><p>{words.linked(" ".join(sentences))}</p></div>'


def _named(plan: SeriesPlan, prediction: Prediction) -> str:
    if not shares(prediction.candidate):
        return f"not {plan.terms.shared}"
    return f"{answer.layers(prediction)} layers, {answer.settings_in_words(prediction.candidate)}"
