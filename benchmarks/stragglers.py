"""How often the test for stragglers names an equal rank, and how soon it names a slow one.

``python -m benchmarks.stragglers healthy`` looks every 32 steps at equal ranks with noise of many kinds. It counts the
episodes in which some score is above several limits; the last one is the limit that names a rank. ``python -m
benchmarks.stragglers slow`` looks every 8 steps at groups in which ranks become slow. It measures recall, wrong names
and the number of steps until all slow ranks are named.
"""

from __future__ import annotations

import argparse
from unittest import mock

import numpy as np

from swtrace.ledger import stragglers
from swtrace.ledger.stragglers import HISTORY_STEPS, LEAST_SCORE, suspects
from tests.support.own_computes import NOISE, PATTERNS, noisy, of, slow

_STEPS_PER_DAY = 50 * 86_400
_LIMITS = (3.6, 4.0, 4.5, 5.0, LEAST_SCORE)
_GAINS = ((0.05, 0.1), (0.1, 0.3))


def episodes(kind: str, ranks: int, steps: int, seed: int, hop: int = 32) -> list[float]:
    """Return the highest score of each episode in which equal ranks have one above the first limit."""
    own, _ = noisy(kind, steps, ranks, seed)
    found: list[float] = []
    last = -2 * HISTORY_STEPS
    with (
        mock.patch.object(stragglers, "LEAST_SCORE", _LIMITS[0]),
        mock.patch.object(stragglers, "LEAST_LOG_ODDS", -(_LIMITS[0] ** 2) / 2),
    ):
        for end in range(hop, steps + 1, hop):
            begin = max(0, end - HISTORY_STEPS)
            named = suspects(of(own[begin:end], begin))
            if not named:
                continue
            score = max(each.score for each in named)
            if end - last > HISTORY_STEPS:
                found.append(score)
            else:
                found[-1] = max(found[-1], score)
            last = end
    return found


def delay(pattern: str, kind: str, ranks: int, gain: tuple[float, float], seed: int) -> tuple[int | None, bool]:
    """Return after how many steps all slow ranks are named, None if they never are, and whether another one was."""
    case = slow(pattern, kind, ranks, gain, seed)
    wrong = False
    for end in range(case.begin + 8, len(case.own_ns) + 1, 8):
        begin = max(0, end - HISTORY_STEPS)
        named = {each.rank for each in suspects(of(case.own_ns[begin:end], begin))}
        wrong |= not named <= set(case.ranks)
        if named >= set(case.ranks):
            return end - case.begin, wrong
    return None, wrong


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("healthy", "slow"))
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 3, 4, 8, 16, 64])
    parser.add_argument("--noise", choices=NOISE, nargs="+", help="kinds (all; of slow ranks: 1 %% and 5 %%)")
    parser.add_argument("--pattern", choices=PATTERNS, nargs="+", default=PATTERNS)
    parser.add_argument("--steps", type=int, default=200_000, help="of each healthy group")
    parser.add_argument("--runs", type=int, default=100, help="of each case with slow ranks")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.what == "healthy":
        for kind in arguments.noise or NOISE:
            for ranks in arguments.ranks:
                scores = np.array(episodes(kind, ranks, arguments.steps, arguments.seed))
                above = ", ".join(f"{int((scores >= limit).sum())} >= {limit}" for limit in _LIMITS)
                days = arguments.steps / _STEPS_PER_DAY
                print(f"{kind:<17} {ranks:3} ranks, {days:.3f} days: {above}", flush=True)
        return
    for kind in arguments.noise or ("1 %", "5 %"):
        for ranks in arguments.ranks:
            for pattern in arguments.pattern:
                for gain in _GAINS:
                    seeds = range(arguments.seed, arguments.seed + arguments.runs)
                    found = [delay(pattern, kind, ranks, gain, seed) for seed in seeds]
                    delays = [steps for steps, _ in found if steps is not None]
                    middle, most = np.quantile(delays, (0.5, 0.99)) if delays else (0, 0)
                    print(
                        f"{kind:<17} {ranks:3} ranks, {pattern:<9} gain {gain[0]:.0%} to {gain[1]:.0%}:"
                        f" recall {len(delays) / len(found):.3f}, wrong {sum(wrong for _, wrong in found)},"
                        f" delay {middle:.0f}, p99 {most:.0f}",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
