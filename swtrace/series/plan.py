"""Who keeps which layer, and which window each other layer gets: pure arithmetic.

Positions lie on a circle, because the last layers of a step prefetch the first layers of the next.
A position's window is written when the forward is up to ``k`` positions before it and read when the
forward is at it; so any ``k + 1`` neighbours on the circle need different windows, and two positions
may share one exactly if more than ``k`` steps lie between them either way round.
"""

from __future__ import annotations

from itertools import pairwise

OWNED = -1
"""In a list of windows: this rank keeps the layer itself."""


def source_rank(layer: int, world_size: int) -> int:
    """Return the group rank that keeps ``layer`` (an absolute index): round robin over the group."""
    return layer % world_size


def owned_positions(start_layer: int, num_layers: int, world_size: int, rank: int) -> frozenset[int]:
    """Return the positions that group rank ``rank`` keeps."""
    return frozenset(p for p in range(num_layers) if source_rank(start_layer + p, world_size) == rank)


def prefetch_target(position: int, prefetch_step: int, num_layers: int) -> int:
    """Return the position whose broadcast starts when the forward reaches ``position``.

    Counted in positions, not in absolute layers: ``(layer + k) mod L`` would be another layer
    whenever the series does not start at a multiple of L.
    """
    return (position + prefetch_step) % num_layers


def rolling_window_count(prefetch_step: int) -> int:
    """Return the number of windows of the rolling policy: the layer in use, and ``k`` ahead of it."""
    return prefetch_step + 1


def full_window_count(num_layers: int, prefetch_step: int) -> int:
    """Return the least number of windows that give every position of the circle one for life.

    ``q = L // (k + 1)`` runs fit on the circle; cut it into q runs as equal as possible, and the
    longest has ``ceil(L / q)`` positions. A rank that owns layers needs at most as many.
    """
    runs = num_layers // (prefetch_step + 1)
    return -(-num_layers // runs)


def static_windows(num_layers: int, prefetch_step: int, owned: frozenset[int]) -> tuple[int, ...]:
    """Give every position that is not owned one window for life, with as few windows as possible.

    Cut the circle of positions that need a window into runs of ``s`` or ``s - 1``, and let a
    position's window be its index within its run. Such a cut exists exactly if ``s`` windows are
    enough (Orlin, Bonuccelli and Bovet 1981, for proper circular-arc graphs, of which "closer than k
    on a circle" is one), so the first ``s`` that has one is the minimum.

    Returns:
        For each position its window, or :data:`OWNED`.
    """
    wanted = [p for p in range(num_layers) if p not in owned]
    windows = [OWNED] * num_layers
    if not wanted:
        return tuple(windows)
    for size in range(_most_neighbours(wanted, num_layers, prefetch_step), len(wanted) + 1):
        cuts = _cut(wanted, num_layers, prefetch_step, size)
        if cuts is not None:
            for begin, end in pairwise(cuts):
                for index in range(begin, end):
                    windows[wanted[index % len(wanted)]] = index - begin
            break
    return tuple(windows)


def _most_neighbours(wanted: list[int], num_layers: int, prefetch_step: int) -> int:
    """Return how many of ``wanted`` lie among ``k + 1`` neighbours at most: a lower bound for the windows."""
    wants = [False] * num_layers
    for position in wanted:
        wants[position] = True
    inside = sum(wants[: prefetch_step + 1])
    most = inside
    for begin in range(1, num_layers):
        inside += wants[(begin + prefetch_step) % num_layers] - wants[begin - 1]
        most = max(most, inside)
    return most


def _cut(wanted: list[int], num_layers: int, prefetch_step: int, size: int) -> list[int] | None:
    """Cut the circle of ``wanted`` into runs of ``size`` or ``size - 1``; return the cuts, or None if it cannot be.

    The last run may be shorter still. A window comes back after a run's length. ``size`` is at least
    the number of wanted positions among any ``k + 1`` neighbours, so coming back after ``size`` is
    always far enough; after less it is only where the gap happens to be wide.
    """
    count = len(wanted)

    def returns_in_time(begin: int, length: int) -> bool:
        """Whether every window of the run at ``begin`` may come back ``length`` wanted positions later."""
        return all(
            (wanted[(i + length) % count] - wanted[i % count]) % num_layers > prefetch_step
            for i in range(begin, begin + length)
        )

    short = size - 1
    short_run = [0 < short < count and returns_in_time(begin, short) for begin in range(count)]
    for first in range(count):
        length_before = {first: 0}
        for end in range(first + 1, first + count + 1):
            if end - size in length_before:
                length_before[end] = size
            elif end - short in length_before and short_run[(end - short) % count]:
                length_before[end] = short
        for last in range(min(size, count) + 1):
            end = first + count - last
            if end in length_before and (last in (0, count, size) or returns_in_time(end, last)):
                cuts = [first + count, end] if last else [end]
                while cuts[-1] != first:
                    cuts.append(cuts[-1] - length_before[cuts[-1]])
                return cuts[::-1]
    return None
