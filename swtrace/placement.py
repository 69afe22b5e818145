"""Which rank owns each layer, and which window every other layer gets: pure arithmetic.

Positions lie on a circle, because the last layers of a step prefetch the first layers of the next.
A position's window is written when the forward is up to ``k`` positions before it, and read when the
forward is at it. So any ``k + 1`` neighbours on the circle need different windows, and two positions
may share a window exactly if they are more than ``k`` positions apart in both directions.
"""

from __future__ import annotations

from itertools import pairwise

OWNED = -1
"""In a list of windows: this rank owns the layer."""


def source_rank(number: int, world_size: int) -> int:
    """Return the group rank that owns a shared layer: round robin over the group.

    Args:
        number: Start layer + position. If all layers are shared, this is the absolute index.
        world_size: Ranks in the group.
    """
    return number % world_size


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

    This colours a proper circular-arc graph. If ``w`` windows are enough for ``n`` positions, they are also enough
    if each serves ``n // w`` positions or one more (Orlin, Bonuccelli and Bovet 1981). So split the positions into
    those whose windows serve one more and the others, and let each part's windows take turns round the circle.

    Returns:
        For each position its window, or :data:`OWNED`.
    """
    wanted = [p for p in range(num_layers) if p not in owned]
    windows = [OWNED] * num_layers
    last = _last_neighbours(wanted, num_layers, prefetch_step)
    fewest = max((end - begin + 1 for begin, end in enumerate(last)), default=0)
    for count in range(fewest, len(wanted) + 1):
        busier = len(wanted) % count if count else 0
        split = _split(last, count, busier)
        if split is not None:
            for is_busier, first, size in ((True, 0, busier), (False, busier, count - busier)):
                part = [position for position, chosen in zip(wanted, split, strict=True) if chosen is is_busier]
                for turn, position in enumerate(part):
                    windows[position] = first + turn % size
            break
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


def _split(last: list[int], count: int, busier: int) -> list[bool] | None:
    """Choose the wanted positions that ``busier`` of the windows serve; return None if ``count`` are not enough.

    Let ``before[i]`` be the number of chosen positions before ``i``. Each position is chosen or not, and of a
    position and its neighbours up to the last one, at most ``busier`` are chosen and at most ``count - busier``
    are not. These are difference constraints. Numbers are only raised, by as little as a violated constraint
    demands. A solution, if there is one, is reached in as many rounds as there are positions.
    """
    size = len(last)
    if not busier:
        return [False] * size
    chosen = busier * (size // count + 1)
    before = [0] * size
    for _ in range(size + 1):
        unchanged = True
        for index in range(size):
            for end, fewest, most in (
                (index + 1, 0, 1),
                (last[index] + 1, last[index] - index + 1 - (count - busier), busier),
            ):
                turns, after = divmod(end, size)
                if before[after] + turns * chosen < before[index] + fewest:
                    before[after] = before[index] + fewest - turns * chosen
                    unchanged = False
                if before[index] < before[after] + turns * chosen - most:
                    before[index] = before[after] + turns * chosen - most
                    unchanged = False
        if unchanged:
            return [following > number for number, following in pairwise([*before, before[0] + chosen])]
    return None


def refilled_by(position: int, prefetch_step: int, count: int) -> int:
    """Return which of ``count`` offloaded layers is copied when the forward of another has ended.

    The one that is ``prefetch_step`` ahead, unless that is in another buffer, where the ring wraps; then the first in
    the same buffer. That is what vLLM does since vllm#54975.
    """
    ahead = (position + prefetch_step) % count
    wraps = 0 < prefetch_step < count and ahead % prefetch_step != position % prefetch_step
    return position % prefetch_step if wraps else ahead


def slots_collide(prefetch_step: int, count: int) -> bool:
    """Return whether vLLM before vllm#54975 copies some of ``count`` offloaded layers into buffers still needed.

    There, each copy is always of the layer that is ``prefetch_step`` ahead, though where the ring wraps, that may be in
    another buffer.
    """
    return count % min(prefetch_step, count) > 0


def least_ahead(prefetch_step: int, count: int) -> int:
    """Return how many positions ahead the latest of all copies starts, in a ring that :func:`refilled_by` refills.

    That is the prefetch step, unless the ring wraps within a buffer's share of it.
    """
    return min((refilled_by(position, prefetch_step, count) - position) % count for position in range(count))
