"""A recording as one self-contained HTML page with verdicts, tables and charts, readable on phones and on paper."""

from __future__ import annotations

import time
from html import escape

import numpy as np

from swtrace import units
from swtrace.ledger.facts import CAUSES, SeriesFacts
from swtrace.ledger.finding import Finding
from swtrace.ledger.totals import DURATION_BOUNDS_NS
from swtrace.ledger.verdict import verdict
from swtrace.recording.reader import Missing
from swtrace.recording.selected import SelectedSteps
from swtrace.report import svg_charts
from swtrace.report.digest import SeriesDigest, digest
from swtrace.selection import Selection
from swtrace.session import RecordingSession
from swtrace.units import milliseconds
from swtrace.version import __version__

_STYLE = """
:root { --text: #1b1f24; --dim: #5b6570; --paper: #ffffff; --panel: #f5f7f9; --rule: #d7dde3;
  --compute: #c9d5e0; --stall: #c8442d; --hidden: #2f7ea8; --exposed: #e0913a; --own: #edf0f3;
  --good: #1d7f4f; --note: #5b6570; --warning: #a86400; --bad: #b8301c;
  --entry_skew: #8a6fb0; --skew: #c8442d; --backlog: #e0913a; --transfer: #2f7ea8; --unattributed: #9aa5af; }
@media screen and (prefers-color-scheme: dark) { :root { --text: #dfe5ea; --dim: #98a4af; --paper: #14181c;
  --panel: #1d2329; --rule: #333c45; --compute: #3a4855; --own: #20272e; --stall: #e2614a; --hidden: #57a6d1;
  --exposed: #e9a85b; --good: #4cc38a; --note: #98a4af; --warning: #e3a23c; --bad: #ef7059; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 60rem; padding: 1.2rem 1rem 3rem; background: var(--paper); color: var(--text);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.2rem; margin: 2.2rem 0 .4rem; }
h3 { font-size: 1rem; margin: 1.6rem 0 .3rem; } p { margin: .3rem 0; } .dim { color: var(--dim); font-size: .88rem; }
ul.verdict { list-style: none; margin: .6rem 0; padding: 0; }
ul.verdict li { border-left: .3rem solid var(--note); background: var(--panel); margin: .35rem 0;
  padding: .4rem .7rem; }
ul.verdict li:first-child { font-weight: 600; } ul.verdict p { font-weight: 400; margin: 0; }
li.good { border-color: var(--good) !important; } li.warning { border-color: var(--warning) !important; }
li.bad { border-color: var(--bad) !important; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid var(--rule); white-space: nowrap; }
th { color: var(--dim); font-weight: 500; } svg { width: 100%; height: auto; display: block; margin: .3rem 0; }
svg text { font: 11px system-ui, sans-serif; fill: var(--dim); } .grid { stroke: var(--rule); stroke-width: 1; }
.line { fill: none; stroke-width: 2; } .line.step { stroke: var(--hidden); }
.line.stall { stroke: var(--stall); fill: none; }
rect.compute { fill: var(--compute); } rect.stall { fill: var(--stall); } rect.hidden { fill: var(--hidden); }
rect.exposed { fill: var(--exposed); } rect.own { fill: var(--own); }
.key { display: inline-block; width: .8em; height: .8em; margin: 0 .3em 0 .9em; vertical-align: -.05em; }
.bar { display: flex; height: 1.1rem; background: var(--own); margin: .15rem 0 .5rem; } .bar i { display: block; }
@media screen and (max-width: 42rem) { .scroll svg { min-width: 38rem; } svg text { font-size: 13px; } }
@media print {
  body { max-width: none; font-size: 11pt; padding: 0; }
  h2 { break-before: page; } h2.first { break-before: auto; }
  h3, svg, table, li, .keep { break-inside: avoid; } h3, h3 + p { break-after: avoid; }
  * { print-color-adjust: exact; }
}
"""


def page(session: RecordingSession, selection: Selection) -> str:
    """Return the page over the selected steps.

    Raises:
        EmptySelectionError: No step of the recording is selected.
        RecordingFormatError: The recording is damaged.
    """
    selected = SelectedSteps(selection)
    found = digest(selected.among(session.steps()))
    facts = selected.facts(session.facts())
    sections = [
        _series(series, found[series.key], selected, first=number == 0)
        for number, series in enumerate(facts.series)
        if series.key in found
    ]
    if not sections:
        sections = ['<p class="dim">No steps were recorded.</p>']
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>swtrace report: {escape(session.recording.paths[0].name)}</title>\n"
        f"<style>{_STYLE}{_shades()}</style>\n</head>\n<body>\n"
        f"{_head(session)}\n{''.join(sections)}\n</body>\n</html>\n"
    )


def _shades() -> str:
    return "".join(
        f"rect.heat{shade} {{ fill: color-mix(in srgb, var(--stall) {round(100 * shade / svg_charts.SHADES)}%, "
        "var(--compute)); }\n"
        for shade in range(svg_charts.SHADES + 1)
    )


def _head(session: RecordingSession) -> str:
    recording, identities = session.recording, session.identities()
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(recording.about.created_ns / 1e9))
    runs = sorted({identity.run_id for identity in identities})
    models = sorted({identity.model for identity in identities if identity.model})
    hosts = sorted({identity.host for identity in identities})
    about = (
        f"run {', '.join(runs) or '-'}, {units.counted(len(identities), 'rank')} on {', '.join(hosts)}; "
        f"recorded {when}, {units.counted(recording.records, 'record')}; swtrace {__version__}"
    )
    parts = [
        f"<h1>{escape(', '.join(models) or 'Shared-weight series')}</h1>",
        f'<p class="dim">{escape(about)}</p>',
    ]
    warning = _missing(recording.missing(), session.lost)
    if warning:
        parts.append(f'<ul class="verdict"><li class="warning">{escape(warning)}</li></ul>')
    return "\n".join(parts)


def _missing(missing: Missing, lost: int) -> str:
    overwritten = (f"Records overwritten before they could be recorded: {lost}.",) if lost else ()
    return " ".join((*overwritten, *missing.sentences))


def _series(facts: SeriesFacts, found: SeriesDigest, selected: SelectedSteps, *, first: bool) -> str:
    said = verdict(facts, selected.history(facts.key))
    aborted = max(rank.totals.aborted_steps for rank in facts.ranks)
    info = facts.ranks[0].info
    last_layer = info.start_layer + info.num_layers - 1
    steps = f"{units.counted(found.steps, 'step')} {selected}".rstrip()
    title = (
        f'<h2 class="{"first" if first else ""}">{escape(facts.key.name)}</h2><p class="dim">layers {info.start_layer} '
        f"to {last_layer} on {units.counted(len(facts.key.group_ranks), 'rank')}, prefetch step {info.prefetch_step}, "
        f"{escape(info.windows)} windows, {escape(info.transport)}; {escape(steps)}"
        f"{f', {aborted} aborted' if aborted else ''}"
        f"{f', {_untimed(facts)} untimed' if _untimed(facts) else ''}</p>"
    )
    coverage_note = f'<p class="dim">{escape(selected.coverage_note())}</p>' if selected.coverage_note() else ""
    findings = "".join(map(_finding, said.findings))
    parts = [title, f'<ul class="verdict">{findings}</ul>{coverage_note}', _table(facts), _over_time(found)]
    parts += [_causes(found), _heat(found), _slack(found), _slowest(found)]
    return "\n".join(parts)


def _finding(finding: Finding) -> str:
    advice = f'<p class="dim">{escape(finding.advice)}</p>' if finding.advice else ""
    return f'<li class="{finding.level.word}">{escape(finding.sentence)}{advice}</li>'


def _table(facts: SeriesFacts) -> str:
    rows = []
    for rank in facts.ranks:
        recent = rank.recent
        steps = max(1, recent.steps)
        ratios = (recent.stall_ratio, recent.on_time_rate, recent.efficiency)
        cells = (
            str(rank.rank.rank),
            milliseconds(recent.step_ns / steps),
            milliseconds(recent.stall_ns / steps),
            *map(units.ratio, ratios),
            units.size(rank.held_bytes),
            units.size(rank.info.replicated_bytes),
        )
        rows.append("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>")
    heads = ("rank", "step", "stall", "stall ratio", "on time", "efficiency", "held", "replicated")
    head = "".join(f"<th>{head}</th>" for head in heads)
    covered = units.counted(facts.steps, "timed step" if _untimed(facts) else "step")
    table = f'<div class="scroll"><table><tr>{head}</tr>{"".join(rows)}</table></div>'
    return f'{table}<p class="dim">Means over {covered}.</p>'


def _untimed(facts: SeriesFacts) -> int:
    return max((sum(rank.totals.untimed_steps.values()) for rank in facts.ranks), default=0)


def _over_time(found: SeriesDigest) -> str:
    means = found.time.means()
    if len(means) < 2:  # noqa: PLR2004 - one point makes no curve
        return ""
    curves = [
        ("step time of the slowest rank", "step", means[:, 0].max(axis=1)),
        ("stall of the most stalled rank", "stall", means[:, 1].max(axis=1)),
    ]
    every = f" Each point is the mean of {found.time.block_steps} steps." if found.time.block_steps > 1 else ""
    return (
        "<h3>Step time and stall</h3>"
        f'<p class="dim">{_key("hidden", "step time of the slowest rank")}'
        f"{_key('stall', 'stall of the most stalled rank')}.{every}</p>"
        + _scroll(svg_charts.lines(curves, x_label="step", x_end=found.steps))
    )


def _causes(found: SeriesDigest) -> str:
    total = found.causes.sum(axis=0)
    if not total.any():
        return ""
    top = int(total.max())
    rows = []
    for rank, key in enumerate(found.first.ranks):
        steps = max(1, int(found.ended[rank]))
        parts = "".join(
            f'<i style="width:{100 * int(ns) / top:.2f}%;background:var(--{cause})" '
            f'title="{units.words(cause)} {milliseconds(ns / steps)}"></i>'
            for cause, ns in zip(CAUSES, found.causes[:, rank].tolist(), strict=True)
        )
        said = f"rank {key.rank}: {milliseconds(total[rank] / steps)}"
        rows.append(f'<div class="keep"><p class="dim">{said}</p><div class="bar">{parts}</div></div>')
    keys = "".join(_key(str(cause), units.words(cause)) for cause in CAUSES)
    return f'<div class="keep"><h3>Stall per step, by cause</h3><p class="dim">{keys}</p></div>{"".join(rows)}'


def _heat(found: SeriesDigest) -> str:
    known = found.waits > 0
    mean = found.stall / np.maximum(1, found.ended)[:, np.newaxis]
    ranks = [key.rank for key in found.first.ranks]
    return (
        "<h3>Stall by rank and layer</h3>"
        f'<p class="dim">Mean per step, up to {milliseconds(float(mean.max(initial=0)))}; '
        f"{_key('own', 'layers that the rank stores itself')}</p>"
        + _scroll(svg_charts.heat_map(mean, known, ranks, found.first.series.start_layer))
    )


def _slack(found: SeriesDigest) -> str:
    early, late = found.slack.sum(axis=0), found.held.sum(axis=0)
    if not (early.any() or late.any()):
        return ""
    used = np.flatnonzero(early + late)
    groups, labels = [], []
    for css, table, wanted in (("stall", late, reversed), ("hidden", early, iter)):
        buckets = [index for index in range(used[0], used[-1] + 1) if table[index]]
        if not buckets:
            continue
        for index in wanted(range(buckets[0], buckets[-1] + 1)):
            bound = DURATION_BOUNDS_NS[min(index, len(DURATION_BOUNDS_NS) - 1)]
            groups.append((f"up to {_short(bound)}", [(css, float(table[index]))]))
            labels.append(_short(bound))
    return (
        "<h3>Slack and stall of the waits</h3>"
        f'<p class="dim">Waits by {_key("stall", "stall")} and {_key("hidden", "slack")}. Labels are upper bounds.</p>'
        + _scroll(svg_charts.bars(groups, labels=labels))
    )


def _slowest(found: SeriesDigest) -> str:
    steps = sorted(found.slowest, reverse=True, key=lambda entry: entry[0])
    if not steps:
        return ""
    keys = (
        _key("compute", "compute")
        + _key("stall", "stalled")
        + _key("hidden", "broadcast, hidden")
        + _key("exposed", "broadcast, exposed")
    )
    parts = [f'<h3>The slowest steps</h3><p class="dim">{keys}</p>']
    for duration, _, step in steps:
        stall = int(step.stall_ns.sum(axis=1).max())
        parts.append(
            f'<div class="keep"><p class="dim">step {step.step}: {milliseconds(duration)}, stall of the most stalled '
            f"rank {milliseconds(stall)}</p>{_scroll(svg_charts.lanes(step))}</div>"
        )
    return "".join(parts)


def _scroll(chart: str) -> str:
    """Wrap a chart so that it scrolls on a narrow screen."""
    return f'<div class="scroll">{chart}</div>'


def _key(css: str, words: str) -> str:
    return f'<span class="key" style="background:var(--{css})"></span>{escape(words)}'


def _short(ns: int) -> str:
    for limit, unit in ((1_000_000_000, "s"), (1_000_000, "ms"), (1_000, "us")):
        if ns >= limit:
            return f"{ns / limit:g} {unit}"
    return f"{ns} ns"
