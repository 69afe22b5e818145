"""Ranks that hang, and who waits for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from swtrace import units
from swtrace.diagnosis.case import Case
from swtrace.diagnosis.finding import Finding, Level
from swtrace.diagnosis.process import stopped
from swtrace.diagnosis.rule import About, Rule
from swtrace.diagnosis.silence import SHORTEST_NS, silence_ns
from swtrace.diagnosis.standing import Doing, Standing, blockers, standings
from swtrace.trace.identity import RankKey

_STACKS = "`swtrace diagnose --stacks` shows where its Python code stands."
_MOST_EVIDENCE = 8


class Hung(Rule):
    """Ranks that make no progress while others wait for them, or all ranks if none does."""

    kinds = ("hung",)
    about = About.CONDITION

    def find(self, case: Case) -> Iterator[Finding]:
        """Follow who waits for whom to the ranks that wait for nothing of ours, and name these."""
        among = standings(case.ranks.values())
        here = [each for each in among.values() if _belongs(each, case)]
        if not any(each.in_step and each.age_ns >= SHORTEST_NS for each in here):
            return
        waiting = [each for each in here if each.in_step and each.doing in {Doing.WAITING, Doing.IN_COLLECTIVE}]
        limit_ns = silence_ns(case.steps)
        held = sorted((each for each in waiting if each.age_ns >= limit_ns), key=lambda each: -each.age_ns)
        if held:
            yield from _behind(case, among, held, limit_ns)
            return
        in_step = [each for each in here if each.in_step]
        silent = [each for each in in_step if each.age_ns >= silence_ns(case.steps, waited=False)]
        if silent and (not case.facts.lockstep or len(silent) == len(in_step)):
            yield _alone(case, silent)


def _belongs(standing: Standing, case: Case) -> bool:
    info, key = standing.info, case.facts.key
    return (info.name, info.start_layer, info.group_ranks) == (key.name, key.start_layer, key.group_ranks)


def _behind(
    case: Case, among: Mapping[RankKey, Standing], held: Sequence[Standing], limit_ns: int
) -> Iterator[Finding]:
    """Yield the finding about the ranks behind those that wait."""
    chain, unknown = _chain(among, held)
    ends = [each for each in chain.values() if not _waits(each) or not blockers(each, among)[0]]
    if any(each.rank.died for each in ends):
        return  # the finding about the death names who waits
    frozen = [each for each in among.values() if each.age_ns >= limit_ns and stopped(each.rank)]
    roots = frozen or [each for each in ends if each.age_ns >= limit_ns]
    roots.sort(key=lambda each: (_waits(each), each.progress.issued, -each.age_ns))
    if not roots:
        if not ends:
            yield _circular(case, list(chain.values()), among)
        return
    root = roots[0]
    evidence = _evidence(case, [each for each in held if each is not root], among)
    if frozen:
        yield _finding(
            case, roots, f"{_named(case, roots)} {_are(roots)} stopped by a signal or a debugger, {_place(root)},", evidence,
            held, advice=f"Continue the process: kill -CONT {root.rank.identity.pid}, or detach the debugger.",
        )  # fmt: skip
    elif _waits(root) and unknown and root.doing is Doing.WAITING:
        yield _unobserved(case, root, unknown, evidence)
    elif root.doing is Doing.WAITING:
        yield _finding(
            case, [root], f"Rank {_name(case, root)} is {root.activity}, although every rank has issued it: "
            "the transport has not moved", evidence, held, confidence=0.8,
            advice="Check the network between these ranks; a rank whose process is frozen looks the same from another host.",
        )  # fmt: skip
    elif root.doing is Doing.IDLE:
        first = held[0]
        late = root.step <= first.step
        what = f"not begun step {first.step:,}" if late else f"ended step {first.step:,}"
        yield _finding(
            case, roots, f"{_named(case, roots)} {_have(roots)} {what}, in which rank {_name(case, first)} has waited",
            evidence, held, age_ns=first.age_ns, confidence=1.0 if late and first.doing is Doing.WAITING else 0.9,
            advice="Ranks of a series run the same steps: check what this rank's program does instead, and that every "
            f"rank gets every batch. {_STACKS}",
        )  # fmt: skip
    elif root.doing is Doing.GONE:
        yield _finding(
            case, roots, f"{_named(case, roots)} {_have(roots)} left, and rank {_name(case, held[0])} has waited",
            evidence, held, age_ns=held[0].age_ns, advice="All ranks of a series must run the same number of steps.",
        )  # fmt: skip
    else:
        together = [each for each in roots if (each.doing, each.progress.issued) == (root.doing, root.progress.issued)]
        verb = "hangs" if len(together) == 1 else "hang"
        inferred = root.doing is Doing.COMPUTING and any(each.doing is Doing.IN_COLLECTIVE for each in held)
        yield _finding(
            case, together, f"{_named(case, together)} {verb} {root.activity},", evidence, held,
            confidence=0.9 if inferred else 1.0, advice=_STACKS,
        )  # fmt: skip


def _chain(
    among: Mapping[RankKey, Standing], held: Sequence[Standing]
) -> tuple[dict[RankKey, Standing], tuple[int, ...]]:
    """Return all ranks that the held ones wait for, in turn, with themselves, and the ranks that are not observed."""
    chain: dict[RankKey, Standing] = {}
    unknown: set[int] = set()
    todo = list(held)
    while todo:
        each = todo.pop(0)
        if each.key in chain:
            continue
        chain[each.key] = each
        if _waits(each):
            known, others = blockers(each, among)
            todo += [among[key] for key in known]
            if not known:
                unknown.update(others)
    return chain, tuple(sorted(unknown))


def _waits(standing: Standing) -> bool:
    return standing.doing in {Doing.WAITING, Doing.IN_COLLECTIVE}


def _alone(case: Case, silent: Sequence[Standing]) -> Finding:
    """Return the finding about ranks that all make no progress, without a rank that waits for one of them."""
    silent = sorted(silent, key=lambda each: (each.progress.issued, -each.age_ns))
    first = silent[0]
    together = [each for each in silent if each.progress.issued == first.progress.issued]
    evidence = tuple(
        f"Rank {_name(case, each)} is {each.activity}, for {units.age(each.age_ns)}." for each in silent[1:]
    )
    return _finding(
        case, together, f"{_named(case, together)} {'makes' if len(together) == 1 else 'make'} no progress: "
        f"{first.activity},", evidence[:_MOST_EVIDENCE], (), confidence=0.8,
        advice=f"No rank waits for another one here, so they may be in a collective that swtrace does not see. {_STACKS}",
    )  # fmt: skip


def _circular(case: Case, chain: Sequence[Standing], among: Mapping[RankKey, Standing]) -> Finding:
    return _finding(
        case, chain, f"{_named(case, chain)} have waited for each other", _evidence(case, chain, among), chain,
        advice="The ranks run different work: check that all use their series and collectives in the same order.",
    )  # fmt: skip


def _unobserved(case: Case, waiter: Standing, unknown: Sequence[int], evidence: tuple[str, ...]) -> Finding:
    source = waiter.source
    ranks = [source] if source in unknown else list(unknown)
    return Finding(
        "hung",
        Level.BAD,
        f"Rank {_name(case, waiter)} is {waiter.activity}, for {units.age(waiter.age_ns)}; "
        f"{units.listed('rank', ranks)} cannot be observed from here.",
        {"age_ns": waiter.age_ns},
        ranks=tuple(rank for rank in ranks if rank is not None),
        layer=waiter.layer,
        advice="Diagnose where that rank runs, or with a daemon that watches its host.",
        confidence=0.5,
        since_ns=_since_ns(waiter, waiter.age_ns),
        since_step=waiter.step,
        evidence=evidence,
    )


def _finding(
    case: Case,
    roots: Sequence[Standing],
    sentence: str,
    evidence: Sequence[str],
    held: Sequence[Standing],
    *,
    advice: str,
    confidence: float = 1.0,
    age_ns: int | None = None,
) -> Finding:
    root = roots[0]
    lasting_ns = root.age_ns if age_ns is None else age_ns
    return Finding(
        "hung",
        Level.BAD,
        f"{sentence} for {units.age(lasting_ns)}.",
        {"age_ns": lasting_ns, "waiting_ranks": len(held), "limit_ns": silence_ns(case.steps, waited=bool(held))},
        ranks=tuple(each.key.rank for each in roots),
        layer=root.layer,
        advice=advice,
        confidence=confidence,
        since_ns=_since_ns(root, lasting_ns),
        since_step=root.step,
        evidence=tuple(evidence),
    )


def _since_ns(standing: Standing, age_ns: int) -> int:
    """Return the UNIX time since when a rank has done what it does; 0 if unknown."""
    rank = standing.rank
    return rank.ring.taken_ns - age_ns + rank.unix_offset_ns if rank.unix_offset_ns else 0


def _evidence(case: Case, held: Sequence[Standing], among: Mapping[RankKey, Standing]) -> tuple[str, ...]:
    """Return who waits for whom, one sentence for each rank that waits."""
    sentences = []
    for each in held[:_MOST_EVIDENCE]:
        known, _ = blockers(each, among)
        late = [case.facts.named(key.rank) for key in known]
        why = ""
        if late and each.doing is Doing.WAITING:
            why = f"; {units.listed('rank', late)} {'has' if len(late) == 1 else 'have'} not issued it"
        elif late:
            why = f"; {units.listed('rank', late)} {'is' if len(late) == 1 else 'are'} in no collective"
        sentences.append(f"Rank {_name(case, each)} is {each.activity}, for {units.age(each.age_ns)}{why}.")
    return tuple(sentences)


def _place(standing: Standing) -> str:
    return standing.place if standing.in_step else f"before step {standing.step:,}"


def _name(case: Case, standing: Standing) -> str:
    return case.facts.named(standing.key.rank)


def _named(case: Case, roots: Sequence[Standing]) -> str:
    return units.listed("Rank", [_name(case, each) for each in roots])


def _are(roots: Sequence[Standing]) -> str:
    return "is" if len(roots) == 1 else "are"


def _have(roots: Sequence[Standing]) -> str:
    return "has" if len(roots) == 1 else "have"
