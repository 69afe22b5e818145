"""How well the diagnosis names real faults: ``python -m benchmarks.diagnose_demo``, part of ``make bench-diagnose``.

Every case is a short run of the demo's ranks on gloo, without its daemon and reader. It begins healthy; then a fault
begins that its ranks inject themselves (``swtrace demo --fault``) and report. Beside them, a live roster reads their
rings, and the diagnosis is asked four times a second. The table is that of the simulated campaign
(``benchmarks/diagnose.py``), with the gain measured: the mean time from step to step after the fault began, against
before. Run it on a quiet machine: the ranks are as many as its cores or more, and everything that disturbs them is a
finding, and a true one.
"""

from __future__ import annotations

import argparse
import os
import secrets
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from benchmarks.diagnose import MEASURED, NAMES, Judged, Named, follows, mistakes, table
from swtrace.cli.child import Child, wait_for_lines
from swtrace.cli.demo.report_lines import RankReport, What
from swtrace.cli.demo.scenarios import Dials
from swtrace.diagnosis.diagnosis import diagnose
from swtrace.diagnosis.finding import Finding
from swtrace.ledger.facts import StepFacts
from swtrace.observing import Roster, watch_rings
from tests.support.faulty_series import Kind

_HEALTHY_S, _FAULTY_S = 2.5, 3.5
_WARM_UP_S = 0.75
LOOK_EVERY_S = 0.25
_LAST_LOOKS_S = 3.0
"""How long to look at ranks that have ended, if a rank that stopped is not named yet."""
_DIALS = Dials(layers=16, mib=0.25, compute_ms=2.0, prefetch_step=2, seconds=_HEALTHY_S + _FAULTY_S)
STOPS = frozenset({Kind.DEAD, Kind.HUNG})
_FAULTS: tuple[tuple[Kind, tuple[int, ...], tuple[str, ...]], ...] = (
    (Kind.STRAGGLER, (2, 3, 4), tuple(f"straggler:ms={ms}" for ms in (0.1, 0.2, 0.3, 0.5, 1.0, 2.0))),
    (Kind.STRAGGLER, (2, 3, 4), tuple(f"straggler:layer=5,ms={ms}" for ms in (3, 6, 12))),
    (Kind.STRAGGLERS, (4,), tuple(f"straggler:ms={ms}" for ms in (0.2, 0.5, 1.0, 2.0))),
    (
        Kind.INTERMITTENT,
        (2, 3, 4),
        tuple(f"straggler:ms={ms},every={every}" for every, ms in ((3, 1), (3, 3), (7, 1), (7, 2), (7, 4), (11, 4))),
    ),
    (Kind.LINK, (3,), tuple(f"slow-link:ms={ms}" for ms in (3, 4, 6, 8, 12, 20))),
    (Kind.SOURCE, (3,), tuple(f"slow-source:ms={ms}" for ms in (3, 4, 6, 8, 12, 20))),
    (Kind.ENTRY, (2, 3, 4), tuple(f"entry:ms={ms}" for ms in (2, 4, 8, 16, 30))),
    (Kind.ENTRY, (2, 3, 4), tuple(f"entry:ms={ms},every=3" for ms in (10, 20, 40))),
    (Kind.RUN_DELAY, (2,), tuple(f"steal:processes={number}" for number in (1, 1, 2, 3))),
    (Kind.HUNG, (2, 3, 4), tuple(f"hang:where={where}" for where in ("compute", "entry", "collective") * 3)),
    (Kind.DEAD, (2, 3, 4), ("kill",) * 8),
)
"""Kind, possible numbers of ranks, and faults from weak to strong, but for their ranks and their begin."""
_HEALTHY_RUNS = 14


class Watched(Protocol):
    """A run, and the truth about it."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def kind(self) -> Kind:
        """What goes wrong."""

    @property
    def ranks(self) -> tuple[int, ...]:
        """The faulty ranks."""

    @property
    def about(self) -> str:
        """What it is, for a line."""


@dataclass(frozen=True)
class Case:
    """A run, and what goes wrong in it."""

    name: str
    kind: Kind
    dials: Dials

    @property
    def ranks(self) -> tuple[int, ...]:
        """The faulty ranks."""
        return tuple(sorted({rank for fault in self.dials.injected for rank in fault.ranks}))

    @property
    def about(self) -> str:
        """What the case is, for a line."""
        return f"{self.kind} {' '.join(self.dials.faults)} n={self.dials.ranks}"


@dataclass
class Seen:
    """What was said and measured in a case."""

    ready: bool = False
    """The first step has begun."""
    begun_unix_ns: int = 0
    standing: set[Named] = field(default_factory=set)
    """What was said before the fault began, and ever since: nobody learns of the fault from it."""
    named: Named | None = None
    named_unix_ns: int = 0
    covered: set[int] = field(default_factory=set)
    saving: float | None = None
    wrong: dict[Named, str] = field(default_factory=dict)
    looks_ms: list[float] = field(default_factory=list)
    steps: list[StepFacts] = field(default_factory=list)


def cases(seed: int) -> list[Case]:
    """Return all cases in an order in which no kind is concentrated."""
    chance, drawn = np.random.default_rng(seed), []
    for kind, sizes, faults in _FAULTS:
        for fault in faults:
            ranks = int(chance.choice(sizes))
            several = 2 if kind is Kind.STRAGGLERS else 1
            which = "+".join(map(str, sorted(chance.choice(ranks, several, replace=False).tolist())))
            colon = "," if ":" in fault else ":"
            text = f"{fault}{colon}rank={which},after={_HEALTHY_S}"
            drawn.append((kind, replace(_DIALS, ranks=ranks, faults=(text,))))
    drawn += [(Kind.NONE, replace(_DIALS, ranks=2 + number % 3)) for number in range(_HEALTHY_RUNS)]
    order = chance.permutation(len(drawn))
    return [Case(str(at), drawn[at][0], replace(drawn[at][1], seed=seed)) for at in order]


def judge(case: Case) -> tuple[Judged, list[float]]:
    """Run a case with the diagnosis beside it. Return what it said, and the ms of CPU time that each look took."""
    seen = Seen()
    with tempfile.TemporaryDirectory(prefix="swtrace-faults-", dir="/dev/shm") as folder:
        rings = Path(folder) / "rings"
        rings.mkdir(mode=0o700)
        environment = {
            "SWTRACE": "1",
            "SWTRACE_DIR": str(rings),
            "SWTRACE_RUN_ID": f"case-{secrets.token_hex(3)}",
            "GLOO_SOCKET_IFNAME": "lo",
            "OMP_NUM_THREADS": "1",
        }
        arguments = [case.dials.to_json(), str(Path(folder) / "rendezvous")]
        with (
            Child.start("swtrace.cli.demo.launcher", arguments, environment=environment, stderr_too=True) as ranks,
            watch_rings(rings, keep_steps=True) as watch,
        ):
            began_s = look_s = ended_s = time.monotonic()
            while ranks.readable or (case.kind in STOPS and time.monotonic() < ended_s + _LAST_LOOKS_S):
                wait_for_lines([ranks], max(0.0, look_s - time.monotonic()))
                if ranks.readable:
                    ended_s = time.monotonic()
                _take(ranks, seen)
                if time.monotonic() < look_s:
                    continue
                if seen.ready:
                    findings = look(watch, seen)
                    _take(ranks, seen)  # a fault that began just before the look
                    weigh(case, findings, seen)
                look_s = max(look_s + LOOK_EVERY_S, time.monotonic())
                if case.kind in STOPS and seen.named and time.time_ns() > seen.named_unix_ns + 1e9:
                    break
    return judged_of(case, seen, time.monotonic() - began_s), seen.looks_ms


def _take(ranks: Child, seen: Seen) -> None:
    """Read what ranks have reported."""
    for line in ranks.lines():
        try:
            report = RankReport.parse(line)
        except ValueError:
            continue
        seen.ready |= report.what is What.READY
        if report.what is What.FAULT:
            seen.begun_unix_ns = min(seen.begun_unix_ns or report.unix_ns, report.unix_ns)


def look(watch: Roster, seen: Seen) -> tuple[Finding, ...]:
    """Return what a diagnosis says to be wrong."""
    before_s = time.process_time()
    watch.drain()
    findings = tuple(finding for _, finding in diagnose(watch.observe()).unexplained())
    seen.looks_ms.append(1e3 * (time.process_time() - before_s))
    seen.steps += watch.take_steps()
    return findings


def weigh(case: Watched, findings: Sequence[Finding], seen: Seen) -> None:
    """Sort what was said at one moment into right and wrong."""
    now_ns = time.time_ns()
    said = {Named(each.kind, each.ranks): each for each in findings}
    seen.standing = seen.standing & said.keys() if seen.begun_unix_ns else set(said)
    for named, finding in said.items():
        if seen.begun_unix_ns and _right(case, named):
            if named in seen.standing:
                continue
            seen.covered |= set(named.ranks)
            if seen.named is None:
                seen.named, seen.named_unix_ns = named, now_ns
            seen.saving = seen.saving if finding.saving is None else finding.saving.share
        elif not (_blames_nobody(named) or (seen.begun_unix_ns and follows(case.kind, named, set(case.ranks)))):
            after = f"{(now_ns - seen.begun_unix_ns) / 1e9:.2f} s" if seen.begun_unix_ns else "before the fault"
            seen.wrong.setdefault(named, f"[{named.kind} {list(named.ranks)} {after}] {finding.sentence}")


def _blames_nobody(named: Named) -> bool:
    """Return whether a finding may be true of a healthy run. Ranks do compete for cores, and the kernel counts it."""
    return named.kind in MEASURED | {"cores_taken"}


def _right(case: Watched, named: Named) -> bool:
    """Return whether a name is the truth: its kind, and no rank but faulty ones."""
    if named.kind not in NAMES.get(case.kind, ()):
        return False
    truth, ranks = set(case.ranks), set(named.ranks)
    return ranks <= truth if case.kind is Kind.STRAGGLERS or not ranks else ranks == truth


def judged_of(case: Watched, seen: Seen, took_s: float) -> Judged:
    """Return the judgement on a case that is over."""
    begun_ns = seen.begun_unix_ns - (time.time_ns() - time.monotonic_ns())
    steps = [step for step in seen.steps if step.complete]
    ends = np.array(sorted(int(step.end_ns.max()) for step in steps))
    healthy = ends[(ends < begun_ns) & (ends > ends[0] + _WARM_UP_S * 1e9)] if len(ends) else ends
    faulty = ends[ends > begun_ns]
    gain = None
    if case.kind not in STOPS | {Kind.NONE} and min(len(healthy), len(faulty)) > 1:
        gain = 1 - float(np.diff(healthy).mean() / np.diff(faulty).mean())
    named_ns = seen.named_unix_ns - seen.begun_unix_ns
    return Judged(
        case=case.name,
        kind=case.kind,
        ranks=case.ranks,
        strength=0.0,
        gain=gain,
        named=seen.named,
        all_ranks=seen.named is not None and seen.covered >= set(case.ranks),
        steps=float(np.searchsorted(faulty, begun_ns + named_ns)) if seen.named else np.nan,
        seconds=named_ns / 1e9 if seen.named else np.nan,
        saving=seen.saving,
        true_saving=gain if seen.named else None,
        wrong=tuple(seen.wrong),
        at_wrong=tuple(seen.wrong.values()),
        looks=len(seen.looks_ms),
        busy_s=took_s,
        about=case.about + ("" if gain is None else f" gain={gain:.3f}"),
        visible=True,
    )


def outcome(judged: Judged) -> str:
    """Return what was said in a case, on one line."""
    said = "not named" if judged.kind is not Kind.NONE else "false findings" if judged.wrong else "nothing named"
    if judged.named is not None:
        said = f"{judged.named.kind} {list(judged.named.ranks)} after {judged.seconds:.2f} s"
    wrong = f"; wrong: {', '.join(f'{kind} {list(ranks)}' for kind, ranks in judged.wrong)}" if judged.wrong else ""
    return f"{judged.about}: {said}{wrong}"


def report(found: Sequence[Judged], looks_ms: Sequence[float]) -> Iterator[str]:
    """Yield the table, and what it leaves out."""
    faults = [each for each in found if each.kind is not Kind.NONE]
    healthy = [each for each in found if each.kind is Kind.NONE]
    yield from table(faults)
    yield (
        f"{len(healthy)} healthy runs, {sum(each.busy_s for each in healthy):.0f} s, "
        f"{sum(each.looks for each in healthy)} looks: {sum(len(each.wrong) for each in healthy)} false findings"
    )
    yield "a look took {:.0f} ms of CPU time (median; 99 %: {:.0f} ms)".format(*np.quantile(looks_ms, (0.5, 0.99)))
    yield f"{os.cpu_count()} cores, load {os.getloadavg()[1]:.1f} over the last five minutes"


def main() -> None:
    """Run all cases and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kind", action="append", choices=[str(kind) for kind in Kind], help="only these kinds")
    parser.add_argument("--case", action="append", help="only the case of this number, to repeat it")
    parser.add_argument("--most", type=int, help="only so many cases")
    arguments = parser.parse_args()
    chosen = [
        case
        for case in cases(arguments.seed)
        if (not arguments.kind or str(case.kind) in arguments.kind)
        and (not arguments.case or case.name in arguments.case)
    ][: arguments.most]
    found: list[Judged] = []
    looks_ms: list[float] = []
    begin_s = time.monotonic()
    for number, case in enumerate(chosen, 1):
        judged, took_ms = judge(case)
        found.append(judged)
        looks_ms += took_ms
        print(f"{number}/{len(chosen)} {outcome(judged)}", file=sys.stderr, flush=True)
    print(f"$ {' '.join(['python -m benchmarks.diagnose_demo', *sys.argv[1:]])}")
    for text in (*report(found, looks_ms), *mistakes(found)):
        print(text.rstrip())
    print(f"{time.monotonic() - begin_s:.0f} s")


if __name__ == "__main__":
    main()
