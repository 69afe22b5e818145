"""Ranks that hang, and who waits for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from swtrace import units
from swtrace.diagnosis.case import Case
from swtrace.diagnosis.finding import Finding, Level
from swtrace.diagnosis.process import stopped
from swtrace.diagnosis.rule import About, Rule
from swtrace.diagnosis.silence import SHORTEST_NS, silence_ns
from swtrace.diagnosis.standing import Doing, Standing, blockers, waits_in_words
from swtrace.trace.identity import RankKey

_STACKS = "`swtrace diagnose --stacks` shows where its Python code stands."
_MOST_EVIDENCE = 8


class Hung(Rule):
    """Ranks that make no progress while others wait for them, or all ranks if none does."""

    kinds = ("hung",)
    about = About.CONDITION

    def find(self, case: Case) -> Iterator[Finding]:
        """Follow who waits for whom to the ranks that wait for nothing of ours, and name these."""
        among = case.standings
        of_series = [each for each in among.values() if case.facts.key == each.series]
        # What the ring of a rank that has ended says about its device stays as it was.
        late = [each for each in of_series if each.behind and each.doing is not Doing.GONE]
        if any(each.device_age_ns >= SHORTEST_NS for each in late) and not any(
            rank.died for rank in case.ranks.values()
        ):
            limit_ns = silence_ns(case.steps, whole_steps=True)
            late = sorted((each for each in late if each.device_age_ns >= limit_ns), key=_device_furthest_behind)
            if late:
                yield _on_device(case, late, [each for each in among.values() if each.age_ns >= limit_ns])
                return
        in_step = [each for each in of_series if each.in_step]
        if not any(each.age_ns >= SHORTEST_NS for each in of_series):
            return
        limit_ns = silence_ns(case.steps)
        held = sorted((each for each in in_step if each.waits and each.age_ns >= limit_ns), key=_longest_first)
        if held:
            yield from _behind(case, among, held, limit_ns)
            return
        overtaken, passed = _overtaken(case, of_series, limit_ns)
        if overtaken:
            yield _left_behind(case, overtaken, passed)
            return
        limit_ns = silence_ns(case.steps, waited=False)
        silent = [each for each in in_step if each.age_ns >= limit_ns]
        if silent and (len(silent) == len(in_step) or not case.facts.lockstep):
            yield _alone(case, sorted(silent, key=_furthest_behind))


def _device_furthest_behind(standing: Standing) -> tuple[int, int]:
    return standing.progress.completed, -standing.device_age_ns


def _longest_first(standing: Standing) -> int:
    return -standing.age_ns


def _furthest_behind(standing: Standing) -> tuple[bool, int, int]:
    return standing.waits, standing.progress.issued, -standing.age_ns


def _overtaken(case: Case, of_series: Sequence[Standing], limit_ns: int) -> tuple[list[Standing], list[Standing]]:
    """Return the ranks that stand still in or before a step that others have ended long ago, and these others.

    No rank waits for them in the series: they store no layer that is still to come, and whoever waits for them does so
    where swtrace does not see it.
    """
    if not (case.facts.lockstep and case.facts.shared):
        return [], []
    idle = [each for each in of_series if each.doing is Doing.IDLE and each.age_ns >= limit_ns]
    last = max((each.step for each in idle), default=0)
    still = [each for each in of_series if each.doing is not Doing.GONE and each.age_ns >= limit_ns]
    behind = sorted((each for each in still if each.step < last), key=_furthest_behind)
    return behind, [each for each in idle if each.step == last]


def _behind(
    case: Case, among: Mapping[RankKey, Standing], held: Sequence[Standing], limit_ns: int
) -> Iterator[Finding]:
    """Yield the finding about the ranks behind those that wait."""
    chain, unknown = _chain(among, held)
    ends = [each for each in chain if not blockers(each, among)[0]]
    if any(each.rank.died for each in ends):
        return  # the finding about the death says who waits
    frozen = [each for each in among.values() if each.age_ns >= limit_ns and stopped(each.rank)]
    roots = sorted(frozen or [each for each in ends if each.age_ns >= limit_ns], key=_furthest_behind)
    if not roots:
        if not ends:
            yield _circular(case, chain, among)
        return
    root = roots[0]
    evidence = tuple(waits_in_words(each, among, case.facts) for each in held if each is not root)
    if frozen:
        yield _frozen(case, roots, held, evidence)
    elif root.doing is Doing.WAITING and unknown:
        yield _unobserved(case, root, unknown, evidence)
    elif root.doing is Doing.WAITING:
        yield _transport(case, root, held, evidence)
    elif (
        root.doing is Doing.IDLE and len(roots) > len(held) and all(each.doing is Doing.IN_COLLECTIVE for each in held)
    ):
        yield _by_itself(case, held, roots)
    elif root.doing in {Doing.IDLE, Doing.GONE}:
        yield _absent(case, roots, held, evidence)
    else:
        yield _busy(case, roots, held, evidence)


def _chain(among: Mapping[RankKey, Standing], held: Sequence[Standing]) -> tuple[list[Standing], tuple[int, ...]]:
    """Return the held ranks and all that they wait for, in turn, and the global ranks among these that are unknown."""
    chain: dict[RankKey, Standing] = {}
    unknown: set[int] = set()
    todo = list(held)
    for each in todo:
        if each.key not in chain:
            chain[each.key] = each
            known, others = blockers(each, among)
            todo += [among[key] for key in known]
            if not known:
                unknown.update(others)
    return list(chain.values()), tuple(sorted(unknown))


# -- one function per sentence ---------------------------------------------------------------------


def _frozen(case: Case, roots: Sequence[Standing], held: Sequence[Standing], evidence: Sequence[str]) -> Finding:
    root, are = roots[0], "is" if len(roots) == 1 else "are"
    where = root.place if root.in_step else f"before step {root.step:,}"
    return _finding(
        roots,
        f"{_named(case, roots)} {are} stopped by a signal or a debugger, {where},",
        evidence,
        held,
        advice=f"Continue the process: kill -CONT {root.rank.identity.pid}, or detach the debugger.",
    )


def _transport(case: Case, root: Standing, held: Sequence[Standing], evidence: Sequence[str]) -> Finding:
    issued = "every rank has issued it" if case.facts.lockstep else "no other rank is needed for that"
    advice = "Check the network between these ranks. A rank on another host whose process is stopped looks the same."
    if root.source is None:
        advice = "Check the device and its link to the host: the kernel's log names errors of both."
    return _finding(
        [root],
        f"{_named(case, [root])} is {root.activity}, although {issued}: nothing has moved",
        evidence,
        held,
        confidence=0.8,
        advice=advice,
    )


def _absent(case: Case, roots: Sequence[Standing], held: Sequence[Standing], evidence: Sequence[str]) -> Finding:
    """Return the finding about ranks that are in no step, while another rank is."""
    root, first = roots[0], held[0]
    late = root.step <= first.step
    if root.doing is Doing.GONE:
        what = "ended, while"
    else:
        what = f"{'not begun' if late else 'ended'} step {first.step:,}, in which"
    return _finding(
        roots,
        f"{_named(case, roots)} {'has' if len(roots) == 1 else 'have'} {what} "
        f"rank {case.facts.named(first.key.rank)} has waited",
        evidence,
        held,
        age_ns=first.age_ns,
        confidence=1.0 if late and first.doing is Doing.WAITING else 0.9,
        advice="All ranks of a series must run the same steps: check which batch this rank did not get, or what its "
        f"program does instead. {_STACKS}",
    )


def _by_itself(case: Case, held: Sequence[Standing], absent: Sequence[Standing]) -> Finding:
    """Return the finding about few ranks in a collective that most ranks have not entered."""
    are, other = ("is", "no other rank has") if len(held) == 1 else ("are", "no further rank has")
    return _finding(
        held,
        f"{_named(case, held)} {are} {held[0].activity}, which {other} entered,",
        tuple(waits_in_words(each, {}, case.facts) for each in absent),
        held,
        confidence=0.9,
        advice=f"Find out why only {'that rank calls' if len(held) == 1 else 'these ranks call'} it. {_STACKS}",
    )


def _left_behind(case: Case, overtaken: Sequence[Standing], passed: Sequence[Standing]) -> Finding:
    """Return the finding about ranks that stand still where others have long passed."""
    root, ended = overtaken[0], passed[0].step - 1
    together = _beside(root, overtaken)
    if root.doing is Doing.IDLE:
        what = f"{'has' if len(together) == 1 else 'have'} not begun step {root.step:,}, while others have ended"
        what += f" step {ended:,}," if ended > root.step else " it,"
    else:
        what = f"{'hangs' if len(together) == 1 else 'hang'} {root.activity},"
    return _finding(
        together,
        f"{_named(case, together)} {what}",
        tuple(
            f"Rank {case.facts.named(each.key.rank)} has ended step {ended:,}, {units.age(each.age_ns)} ago."
            for each in passed
        ),
        passed,
        confidence=0.9,
        advice=_STACKS,
    )


def _busy(case: Case, roots: Sequence[Standing], held: Sequence[Standing], evidence: Sequence[str]) -> Finding:
    """Return the finding about ranks in their own compute, or in a collective."""
    root = roots[0]
    together = _beside(root, roots)
    inferred = root.doing is Doing.COMPUTING and any(each.doing is Doing.IN_COLLECTIVE for each in held)
    return _finding(
        together,
        f"{_named(case, together)} {'hangs' if len(together) == 1 else 'hang'} {root.activity},",
        evidence,
        held,
        confidence=0.9 if inferred else 1.0,
        advice=_STACKS,
    )


def _alone(case: Case, silent: Sequence[Standing]) -> Finding:
    """Return the finding about ranks that make no progress, without a rank that waits for one of them."""
    together = _beside(silent[0], silent)
    return _finding(
        together,
        f"{_named(case, together)} {'hangs' if len(together) == 1 else 'hang'} {silent[0].activity},",
        tuple(waits_in_words(each, {}, case.facts) for each in silent if each not in together),
        (),
        confidence=0.8,
        advice=f"No rank waits for another, so they may be in a collective that swtrace does not see. {_STACKS}",
    )


def _circular(case: Case, chain: Sequence[Standing], among: Mapping[RankKey, Standing]) -> Finding:
    return _finding(
        chain,
        f"{_named(case, chain)} have waited for each other",
        tuple(waits_in_words(each, among, case.facts) for each in chain),
        chain,
        advice="The ranks run different work: check that all use their series and collectives in the same order.",
    )


def _unobserved(case: Case, waiter: Standing, unknown: Sequence[int], evidence: Sequence[str]) -> Finding:
    ranks = [rank for rank in unknown if rank == waiter.source] or list(unknown)
    return _finding(
        [waiter],
        f"{_named(case, [waiter])} is {waiter.activity}; {units.listed('rank', ranks)} cannot be seen from here, and "
        "that has lasted",
        evidence,
        [waiter],
        ranks=ranks,
        confidence=0.5,
        advice="Diagnose where that rank runs, or with a daemon that watches its host.",
    )


def _on_device(case: Case, late: Sequence[Standing], silent: Sequence[Standing]) -> Finding:
    """Return the finding about devices that do not complete what was launched, or the hosts that hold them up."""
    first = late[0]
    step, age_ns = first.progress.completed, first.device_age_ns
    on_devices = tuple(
        f"The device of rank {case.facts.named(each.key.rank)} has completed {each.progress.completed:,} of "
        f"{each.progress.completed + each.behind:,} launched steps, and none for {units.age(each.device_age_ns)}."
        for each in late
    )
    hosts = [] if not case.facts.lockstep else [
        each for each in silent if (each.issued(first.info) or 0) // first.info.num_layers <= step
    ]  # fmt: skip
    if hosts:
        root = min(hosts, key=_furthest_behind)
        together = _beside(root, hosts)
        return _finding(
            together,
            f"{_named(case, together)} {'hangs' if len(together) == 1 else 'hang'} {root.activity}: "
            f"the device of rank {case.facts.named(first.key.rank)} has not completed step {step:,}",
            on_devices,
            late,
            age_ns=age_ns,
            advice=_STACKS,
        )
    # A device shows no more than completed steps, so of several, any one may hold up the others.
    late = sorted(late, key=lambda each: each.key.rank)
    named = units.listed("rank", [case.facts.named(each.key.rank) for each in late])
    one = len(late) == 1
    which = f"The device of {named} has" if one else f"The devices of {named} have"
    return _finding(
        late,
        f"{which} not completed step {step:,}, which {'its host has' if one else 'their hosts have'} launched,",
        on_devices,
        (),
        age_ns=age_ns,
        advice="A kernel or a collective does not end there. torch's flight recorder shows which collective it is.",
    )


def _beside(root: Standing, roots: Sequence[Standing]) -> list[Standing]:
    """Return those of the ranks that do the same at the same place as one of them."""
    return [each for each in roots if (each.doing, each.progress.issued) == (root.doing, root.progress.issued)]


def _named(case: Case, roots: Sequence[Standing]) -> str:
    return units.listed("Rank", [case.facts.named(each.key.rank) for each in roots])


def _finding(
    roots: Sequence[Standing],
    sentence: str,
    evidence: Sequence[str],
    held: Sequence[Standing],
    *,
    advice: str,
    confidence: float = 1.0,
    age_ns: int | None = None,
    ranks: Sequence[int] = (),
) -> Finding:
    root = roots[0]
    lasting_ns = root.age_ns if age_ns is None else age_ns
    return Finding(
        "hung",
        Level.BAD,
        f"{sentence} for {units.age(lasting_ns)}.",
        {"age_ns": lasting_ns, "waiting_ranks": len(held)},
        ranks=tuple(ranks or (each.key.rank for each in roots)),
        layer=root.layer,
        advice=advice,
        confidence=confidence,
        since_ns=root.since_unix_ns(lasting_ns),
        since_step=root.step,
        evidence=tuple(evidence[:_MOST_EVIDENCE]),
    )
