"""Which rank owns each layer, and which window every other layer gets: pure arithmetic.

Positions lie on a circle, because the last layers of a step prefetch the first layers of the next.
A position's window is written when the forward is up to ``k`` positions before it, and read when the
forward is at it. So any ``k + 1`` neighbours on the circle need different windows, and two positions
may share a window exactly if they are more than ``k`` positions apart in both directions.
"""

from __future__ import annotations

OWNED = -1
"""In a list of windows: this rank owns the layer."""


def source_rank(layer: int, world_size: int) -> int:
    """Return the group rank that owns ``layer`` (an absolute index): round robin over the group."""
    return layer % world_size


def prefetch_target(position: int, prefetch_step: int, num_layers: int) -> int:
    """Return the position whose broadcast starts when the forward reaches ``position``.

    Positions are counted, not absolute layers: ``(layer + k) mod L`` would be a different layer
    if the series does not start at a multiple of L.
    """
    return (position + prefetch_step) % num_layers


def rolling_window_count(prefetch_step: int) -> int:
    """Return the number of windows of the rolling policy: one for the layer in use, and ``k`` for those ahead."""
    return prefetch_step + 1


def static_windows(num_layers: int, prefetch_step: int, owned: frozenset[int]) -> tuple[int, ...]:
    """Assign every position that is not owned one fixed window, with as few windows as possible.

    Number the positions that need a window in rising order round the circle, skipping numbers where
    that helps, so that the circle's length is a multiple of the window count. A position's window
    is its number modulo that count. Neighbours within ``k`` get different windows if their numbers
    differ by less than the count. These are difference constraints, solved by relaxation. The first
    count and multiple with a solution are the least. (The tests check the minimum by brute force;
    see Orlin, Bonuccelli and Bovet 1981 on colouring proper circular-arc graphs.)

    Returns:
        For each position its window, or :data:`OWNED`.
    """
    wanted = [p for p in range(num_layers) if p not in owned]
    windows = [OWNED] * num_layers
    last = _last_neighbours(wanted, num_layers, prefetch_step)
    fewest = max((end - begin + 1 for begin, end in enumerate(last)), default=0)
    turns_that_fit = num_layers // (prefetch_step + 1)
    for count in range(fewest, len(wanted) + 1):
        turns = -(-len(wanted) // count) if count else 0
        for length in range(turns * count, max(turns, turns_that_fit) * count + 1, count or 1):
            numbers = _number(last, count, length)
            if numbers is not None:
                for position, number in zip(wanted, numbers, strict=True):
                    windows[position] = number % count
                return tuple(windows)
    return tuple(windows)


def _last_neighbours(wanted: list[int], num_layers: int, prefetch_step: int) -> list[int]:
    """Return for each wanted position the index of the last one within ``k`` after it; indices go on past the end."""
    count = len(wanted)
    last = []
    end = 0
    for begin, position in enumerate(wanted):
        end = max(end, begin)
        while end + 1 < begin + count:
            turns, index = divmod(end + 1, count)
            if wanted[index] + turns * num_layers - position > prefetch_step:
                break
            end += 1
        last.append(end)
    return last


def _number(last: list[int], count: int, length: int) -> list[int] | None:
    """Number the wanted positions round a circle of ``length``; return None if there is no solution.

    Each number is above the one before, and a position's last neighbour is less than ``count`` above
    it. Numbers are only raised, by as little as a violated constraint demands. A solution, if there is
    one, is reached in as many rounds as there are positions.
    """
    size = len(last)
    numbers = list(range(size))
    for _ in range(size + 1):
        unchanged = True
        for index in range(size):
            turns, neighbour = divmod(last[index], size)
            least = numbers[neighbour] + turns * length - (count - 1)
            if numbers[index] < least:
                numbers[index] = least
                unchanged = False
            turns, following = divmod(index + 1, size)
            least = numbers[index] + 1 - turns * length
            if numbers[following] < least:
                numbers[following] = least
                unchanged = False
        if unchanged:
            return numbers
    return None
