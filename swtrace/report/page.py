"""A recording as one self-contained HTML page with verdicts, tables and charts, readable on phones and on paper."""

from __future__ import annotations

import time
from collections.abc import Collection
from html import escape
from pathlib import Path

import numpy as np

from swtrace import units
from swtrace.diagnosis.diagnosis import verdict, with_savings
from swtrace.diagnosis.finding import Finding
from swtrace.diagnosis.page import certainty, gain
from swtrace.ledger.facts import CAUSES, SeriesFacts
from swtrace.ledger.totals import DURATION_BOUNDS_NS
from swtrace.recording.reader import Missing
from swtrace.recording.selected import SelectedSteps
from swtrace.report import svg_charts
from swtrace.report.digest import OverTime, SeriesDigest, digest
from swtrace.report.word_links import WordLinks
from swtrace.selection import Selection
from swtrace.session import RecordingSession
from swtrace.units import milliseconds
from swtrace.version import __version__


def page(session: RecordingSession, selection: Selection) -> str:
    """Return the page over the selected steps.

    Raises:
        EmptySelectionError: No step of the recording is selected.
        RecordingFormatError: The recording is damaged.
    """
    selected = SelectedSteps(selection)
    found = digest(selected.among(session.steps()))
    facts = selected.facts(session.facts())
    words = WordLinks()
    several_runs = len({series.key.run_id for series in facts.series}) > 1
    sections = [
        _series(series, found.get(series.key), selected, words, first=number == 0, name_run=several_runs)
        for number, series in enumerate(facts.series)
    ]
    if not sections:
        sections = ['<p class="dim">No series was recorded.</p>']
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>swtrace report: {escape(session.recording.paths[0].name)}</title>\n"
        f"<style>{style()}</style>\n</head>\n<body>\n"
        f"{_head(session)}\n{''.join(sections)}\n{words.section()}\n</body>\n</html>\n"
    )


def style() -> str:
    """Return the style sheet of every page."""
    shades = (
        f"color-mix(in srgb, var(--stall) {round(100 * shade / svg_charts.SHADES)}%, var(--compute))"
        for shade in range(svg_charts.SHADES + 1)
    )
    heat = "".join(f".heat{shade} {{ fill: {mix}; background: {mix}; }}\n" for shade, mix in enumerate(shades))
    return Path(__file__).with_name("page.css").read_text(encoding="utf-8") + heat


def _head(session: RecordingSession) -> str:
    recording, identities = session.recording, session.identities()
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(recording.about.created_ns / 1e9))
    runs = sorted({identity.run_id for identity in identities})
    models = sorted({identity.model for identity in identities if identity.model})
    hosts = sorted({identity.host for identity in identities})
    about = (
        f"{'run' if len(runs) == 1 else 'runs'} {', '.join(runs) or '-'}, "
        f"{units.counted(len(identities), 'rank')} on {', '.join(hosts)}; "
        f"recorded {when}, {units.counted(recording.records, 'record')}"
    )
    files = ", ".join(path.name for path in recording.paths)
    parts = [
        f'<p class="dim product"><b>swtrace</b> {__version__} report on {escape(files)}</p>',
        f"<h1>{escape(', '.join(models) or 'Recorded series')}</h1>",
        f'<p class="dim">{escape(about)}</p>',
    ]
    warning = _missing(recording.missing(), session.lost)
    if warning:
        parts.append(f'<ul class="verdict"><li class="warning">{escape(warning)}</li></ul>')
    return "\n".join(parts)


def _missing(missing: Missing, lost: int) -> str:
    overwritten = (f"Records overwritten before they could be recorded: {lost}.",) if lost else ()
    return " ".join((*overwritten, *missing.sentences))


def _series(
    facts: SeriesFacts,
    found: SeriesDigest | None,
    selected: SelectedSteps,
    words: WordLinks,
    *,
    first: bool,
    name_run: bool,
) -> str:
    steps = selected.history(facts.key)
    said = with_savings(verdict(facts, steps), steps)
    info = facts.ranks[0].info
    ranks = units.counted(len(facts.key.group_ranks), "rank")
    run = f"run {facts.key.run_id}: " if name_run else ""
    about = f"{run}{info.extent} on {ranks}, {info.sharing}"
    if len(facts.hosts) > 1:
        about += f"; {units.placed(facts.hosts)}"
    seen: set[str] = set()
    findings = "".join(_finding(finding, words, seen) for finding in said.findings)
    coverage_note = f'<p class="dim">{escape(selected.coverage_note())}</p>' if selected.coverage_note() else ""
    parts = [
        f'<h2 class="{"first" if first else ""}">{escape(facts.key.name)}</h2>',
        f'<p class="dim">{words.linked(about)}</p><p class="dim">{_covered(facts, found, selected)}</p>',
        f'<ul class="verdict">{findings}</ul>{coverage_note}',
    ]
    if found is not None and found.steps:
        parts += [_table(facts, words), _over_time(facts, found), _causes(facts, found, words)]
        parts += [_heat(found, facts.terms.own), _slack(found, words)] if facts.shared else []
        parts.append(_slowest(facts, found))
    return "\n".join(parts)


def _covered(facts: SeriesFacts, found: SeriesDigest | None, selected: SelectedSteps) -> str:
    """Return which steps the section covers. Aborted and untimed steps are counted over the whole recording."""
    over = max if facts.lockstep else sum
    untimed = over([sum(rank.totals.untimed_steps.values()) for rank in facts.ranks])
    aborted = over([rank.totals.aborted_steps for rank in facts.ranks])
    others = ", ".join(f"{number} {what}" for number, what in ((aborted, "aborted"), (untimed, "untimed")) if number)
    covered = 0 if found is None else found.steps
    whose = "of all ranks " if facts.apart else ""
    steps = f"{units.counted(covered, 'timed step' if untimed else 'step')} {whose}{selected}".rstrip()
    return escape(f"Covers {steps}.{f' Not covered, in the whole recording: {others}.' if others else ''}")


def _finding(finding: Finding, words: WordLinks, seen: set[str]) -> str:
    since = "" if finding.since_step is None else f"since step {finding.since_step:,}"
    sure = certainty(finding) if finding.confidence < 1 else ""
    known = "; ".join(filter(None, (since, sure, gain(finding))))
    below = (*finding.evidence, known and f"{known[0].upper()}{known[1:]}.", finding.advice)
    more = "".join(f'<p class="dim">{escape(each)}</p>' for each in below if each)
    return f'<li class="{finding.level.word}">{words.linked(finding.sentence, seen)}{more}</li>'


def _table(facts: SeriesFacts, words: WordLinks) -> str:
    rows = []
    for rank in facts.ranks:
        recent = rank.recent
        steps = max(1, recent.steps)
        ratios = (recent.stall_ratio, recent.on_time_rate, recent.efficiency)
        cells = (
            facts.named(rank.rank.rank),
            milliseconds(recent.step_ns / steps),
            milliseconds(recent.stall_ns / steps),
            *map(units.ratio, ratios),
        )
        rows.append("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>")
    heads = ("rank", "step", "stall", "stall ratio", "on time", "efficiency")
    head = "".join(f"<th>{words.linked(head)}</th>" for head in heads)
    held = _size_range([rank.held_bytes for rank in facts.ranks])
    replicated = _size_range([rank.info.replicated_bytes for rank in facts.ranks])
    return (
        f'<div class="scroll"><table><tr>{head}</tr>{"".join(rows)}</table></div><p class="dim">Step and stall are '
        f"means per step. Each rank holds {held} of this series' weights; without {facts.terms.sharing} it would hold "
        f"{replicated}.</p>"
    )


def _size_range(sizes: Collection[int]) -> str:
    least, most = units.size(min(sizes)), units.size(max(sizes))
    return least if least == most else f"{least} to {most}"


def _over_time(facts: SeriesFacts, found: SeriesDigest) -> str:
    """Draw step time and stall; in a pull series, those of the rank that stalls for most of its steps."""

    def stall_share(of: OverTime) -> float:
        step_ns, stall_ns, _ = of.means.mean()
        return float(stall_ns.max() / max(1.0, step_ns.max()))

    only, time = max(found.time.items(), key=lambda item: stall_share(item[1]))
    means, block_steps = time.means.means(), time.means.block_steps
    if len(means) < 2:  # noqa: PLR2004 - one point makes no curve
        return ""
    step, stall, whose = "step time of the slowest rank", "stall of the most stalled rank", ""
    if only is not None:
        step, stall, whose = "step time", "stall", f" of rank {facts.named(found.first.ranks[only].rank)}"
    curves = [(step, "step", means[:, 0].max(axis=1)), (stall, "stall", means[:, 1].max(axis=1))]
    every = f"Each point is the mean of {block_steps} steps. " if block_steps > 1 else ""
    keys = (("hidden", step), ("stall", stall))
    chart = svg_charts.lines(curves, means[:, 2].max(axis=1), time.first, time.last)
    return (
        f'<div class="keep"><h3>Step time and stall{escape(whose)}</h3>{_keys(keys)}{chart}'
        f'<p class="dim">{every}The numbers below the chart are those of the steps.</p></div>'
    )


def _causes(facts: SeriesFacts, found: SeriesDigest, words: WordLinks) -> str:
    total = found.causes.sum(axis=0)
    if not total.any():
        return ""
    top = int(total.max())
    rows = []
    for rank, key in enumerate(found.first.ranks):
        steps = max(1, int(found.ended[rank]))
        parts = [(cause, ns) for cause, ns in zip(CAUSES, found.causes[:, rank].tolist(), strict=True) if ns]
        bar = "".join(f'<i style="width:{100 * ns / top:.2f}%;background:var(--{cause})"></i>' for cause, ns in parts)
        largest_first = sorted(parts, key=lambda part: -part[1])
        said = ", ".join(f"{units.words(cause)} {milliseconds(ns / steps)}" for cause, ns in largest_first)
        rows.append(
            f'<div class="keep"><p class="dim">rank {escape(facts.named(key.rank))}: '
            f"{milliseconds(total[rank] / steps)}{f' ({said})' if said else ''}</p>"
            f'<div class="bar">{bar}</div></div>'
        )
    keys = "".join(
        _key(cause, words.linked(units.words(cause)))
        for cause, ns in zip(CAUSES, found.causes.sum(axis=1).tolist(), strict=True)
        if ns
    )
    heading = f'<div class="keep"><h3>Stall per step, by cause</h3><p class="dim keys">{keys}</p></div>'
    return f"{heading}{''.join(rows)}"


def _heat(found: SeriesDigest, stored: str) -> str:
    mean = found.stall / np.maximum(1, found.ended)[:, np.newaxis]
    ranks = [key.rank for key in found.first.ranks]
    own = found.first.source == np.arange(len(ranks))[:, np.newaxis]
    own &= bool(stored)
    chart = svg_charts.heat_map(mean, found.waits > 0, own, ranks, found.first.layers)
    shades = "".join(f'<i class="heat{shade}"></i>' for shade in range(svg_charts.SHADES + 1))
    scale = f'<span class="scale"><span>0</span>{shades}<span>{milliseconds(float(mean.max(initial=0)))}</span></span>'
    return (
        '<div class="keep"><h3>Stall by rank and layer</h3>'
        f'<p class="dim keys"><span>mean stall per step: {scale}</span>'
        f"{_key('own', 'stored by the rank itself, which never waits for it') if stored else ''}</p>{chart}"
        '<p class="dim">The numbers below the chart are those of the layers.</p></div>'
    )


def _slack(found: SeriesDigest, words: WordLinks) -> str:
    early, late = found.slack.sum(axis=0), found.held.sum(axis=0)
    if not (early.any() or late.any()):
        return ""
    groups = []
    for css, table, outward in (("stall", late, -1), ("hidden", early, 1)):
        used = np.flatnonzero(table)
        if used.size:
            for index in range(used[0], used[-1] + 1)[::outward]:
                bound = DURATION_BOUNDS_NS[min(index, len(DURATION_BOUNDS_NS) - 1)]
                over = "" if index < len(DURATION_BOUNDS_NS) else "> "
                groups.append((f"{over}{svg_charts.short_duration(bound)}", css, int(table[index])))
    keys = _key("stall", words.linked(f"{units.counted(int(late.sum()), 'wait')} stalled, by stall")) + _key(
        "hidden", words.linked(f"{units.counted(int(early.sum()), 'wait')} on time, by slack")
    )
    return (
        f'<div class="keep"><h3>Slack and stall of the waits</h3><p class="dim keys">{keys}</p>'
        f"{svg_charts.bars(groups)}"
        '<p class="dim">A bar counts the waits up to the duration below it and above that of its smaller '
        "neighbour.</p></div>"
    )


def _slowest(facts: SeriesFacts, found: SeriesDigest) -> str:
    steps = sorted(found.slowest, reverse=True, key=lambda entry: entry[0])
    if not steps:
        return ""
    keys = (
        ("compute", "compute"),
        ("stall", "stalled"),
        ("hidden", f"{facts.terms.move}, hidden"),
        ("exposed", f"{facts.terms.move}, exposed"),
    )
    charts = []
    for duration, _, step in steps:
        stall = int(step.stall_ns.sum(axis=1).max())
        apart = "" if step.comparable else "; the clocks are not aligned, so each rank is shown from its own begin"
        about = (
            f"step {step.step}: {milliseconds(duration)}, stall of the most stalled rank {milliseconds(stall)}{apart}"
        )
        if step.only_rank is not None:
            rank = facts.named(step.only_rank.rank)
            about = f"step {step.step} of rank {rank}: {milliseconds(duration)}, stall {milliseconds(stall)}"
        charts.append(f'<div class="keep"><p class="dim">{escape(about)}</p>{svg_charts.lanes(step)}</div>')
    return f"<h3>The slowest steps</h3>{_keys(keys)}{''.join(charts)}"


def _keys(keys: Collection[tuple[str, str]]) -> str:
    """Return a legend of colours, each with its meaning as plain text."""
    return f'<p class="dim keys">{"".join(_key(css, escape(text)) for css, text in keys)}</p>'


def _key(css: str, html: str) -> str:
    return f'<span><span class="key" style="background:var(--{css})"></span>{html}</span>'
