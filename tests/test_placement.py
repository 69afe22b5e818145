"""Which rank owns each layer, and how many windows that takes, against brute force."""

from __future__ import annotations

from collections import Counter
from itertools import combinations, compress, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swtrace import placement


def owned_positions(start_layer: int, num_layers: int, world_size: int, rank: int) -> frozenset[int]:
    """Return the positions that group rank ``rank`` owns."""
    return frozenset(p for p in range(num_layers) if placement.source_rank(start_layer + p, world_size) == rank)


def full_window_count(num_layers: int, prefetch_step: int) -> int:
    """Return the least number of windows that give every position of the circle one for life.

    ``q = L // (k + 1)`` runs fit on the circle; cut it into q runs as equal as possible, and the
    longest has ``ceil(L / q)`` positions. A rank that owns layers needs at most as many.
    """
    runs = num_layers // (prefetch_step + 1)
    return -(-num_layers // runs)


def in_conflict(a: int, b: int, num_layers: int, prefetch_step: int) -> bool:
    apart = (a - b) % num_layers
    return min(apart, num_layers - apart) <= prefetch_step


def fewest_windows(positions: list[int], num_layers: int, prefetch_step: int) -> int:
    """Return the chromatic number of the conflicts, by trying every assignment."""

    def assign(index: int, used: int, windows: dict[int, int], limit: int) -> bool:
        if index == len(positions):
            return True
        position = positions[index]
        for window in range(min(used + 1, limit)):
            if all(
                held != window or not in_conflict(position, other, num_layers, prefetch_step)
                for other, held in windows.items()
            ):
                windows[position] = window
                if assign(index + 1, max(used, window + 1), windows, limit):
                    return True
                del windows[position]
        return False

    return next(limit for limit in range(len(positions) + 1) if assign(0, 0, {}, limit))


def assert_sound(windows: tuple[int, ...], num_layers: int, prefetch_step: int, owned: frozenset[int]) -> None:
    assert [p for p in range(num_layers) if windows[p] == placement.OWNED] == sorted(owned)
    for a, b in combinations([p for p in range(num_layers) if p not in owned], 2):
        if windows[a] == windows[b]:
            assert not in_conflict(a, b, num_layers, prefetch_step), (num_layers, prefetch_step, owned, windows)


def test_layers_go_round_the_group_by_their_absolute_index() -> None:
    """The source of a layer is its absolute index modulo the group's size, wherever the series starts."""
    assert [placement.source_rank(layer, 3) for layer in range(5, 10)] == [2, 0, 1, 2, 0]
    assert owned_positions(5, 5, 3, 0) == {1, 4}


@pytest.mark.parametrize("start_layer", [0, 1, 3, 5])
@pytest.mark.parametrize("prefetch_step", [0, 1, 2])
def test_the_next_layer_is_counted_in_positions(start_layer: int, prefetch_step: int) -> None:
    """The layer k ahead is k positions ahead on the circle, also where the start is no multiple of L.

    Counting in absolute layers, ``(layer + k) mod L + start``, is wrong there and silently loses the prefetch.
    """
    num_layers = 4
    for layer in range(start_layer, start_layer + num_layers):
        target = placement.prefetch_target(layer - start_layer, prefetch_step, num_layers)
        assert (target - (layer - start_layer)) % num_layers == prefetch_step
    if start_layer % num_layers and prefetch_step:
        absolute = [(layer + prefetch_step) % num_layers for layer in range(start_layer, start_layer + num_layers)]
        assert absolute != [placement.prefetch_target(p, prefetch_step, num_layers) for p in range(num_layers)]


def test_static_windows_are_as_few_as_can_be() -> None:
    """No assignment of windows to the layers that a rank does not own needs fewer (all L up to 11, n up to 8)."""
    for num_layers in range(2, 12):
        for prefetch_step in range(num_layers - 1):
            for world_size in range(2, 9):
                for rank in range(world_size):
                    owned = owned_positions(0, num_layers, world_size, rank)
                    windows = placement.static_windows(num_layers, prefetch_step, owned)
                    assert_sound(windows, num_layers, prefetch_step, owned)
                    wanted = [p for p in range(num_layers) if p not in owned]
                    assert max(windows) + 1 == fewest_windows(wanted, num_layers, prefetch_step)


@pytest.mark.parametrize("num_layers", range(2, 11))
def test_static_windows_are_as_few_as_can_be_for_any_owner(num_layers: int) -> None:
    """The minimum holds for every set of owned layers, not only for those that round robin gives."""
    for prefetch_step in range(num_layers - 1):
        for chosen in product((False, True), repeat=num_layers):
            owned = frozenset(compress(range(num_layers), chosen))
            windows = placement.static_windows(num_layers, prefetch_step, owned)
            assert_sound(windows, num_layers, prefetch_step, owned)
            wanted = [p for p in range(num_layers) if p not in owned]
            assert max(windows) + 1 == fewest_windows(wanted, num_layers, prefetch_step)


def test_static_windows_may_serve_layers_in_an_uneven_order() -> None:
    """12 layers of which 8 need a window, with k = 3, take 3 windows: two serve 3 layers, one serves 2."""
    owned = frozenset({0, 2, 6, 8})
    windows = placement.static_windows(12, 3, owned)
    assert_sound(windows, 12, 3, owned)
    assert sorted(Counter(windows[p] for p in range(12) if p not in owned).values()) == [2, 3, 3]


def test_static_windows_of_one_rank_serve_unequal_numbers_of_layers() -> None:
    """Of 18 layers on 4 ranks with k = 5, rank 1 needs 5 windows for 13 layers: three serve 3, two serve 2."""
    owned = owned_positions(0, 18, 4, 1)
    windows = placement.static_windows(18, 5, owned)
    assert_sound(windows, 18, 5, owned)
    assert sorted(Counter(windows[p] for p in range(18) if p not in owned).values()) == [2, 2, 3, 3, 3]


def test_static_windows_of_a_rank_that_owns_nothing_follow_the_formula() -> None:
    """Without owned layers the count is ceil(L / floor(L / (k + 1))), for L up to 32, 61 and 80, k below 20."""
    for num_layers in (*range(2, 33), 61, 80):
        for prefetch_step in range(min(20, num_layers - 1)):
            windows = placement.static_windows(num_layers, prefetch_step, frozenset())
            assert max(windows) + 1 == full_window_count(num_layers, prefetch_step)


@settings(max_examples=150)
@given(data=st.data())
def test_owning_layers_never_costs_windows(data: st.DataObject) -> None:
    """A rank that owns layers never needs more windows than the formula for one that owns none."""
    num_layers = data.draw(st.integers(2, 150))
    prefetch_step = data.draw(st.integers(0, min(19, num_layers - 2)))
    world_size = data.draw(st.integers(2, 16))
    owned = owned_positions(
        data.draw(st.integers(0, 9)), num_layers, world_size, data.draw(st.integers(0, world_size - 1))
    )
    windows = placement.static_windows(num_layers, prefetch_step, owned)
    assert_sound(windows, num_layers, prefetch_step, owned)
    assert max(windows) + 1 <= full_window_count(num_layers, prefetch_step)


def test_modulo_windows_would_collide_at_the_wrap() -> None:
    """Windows by position modulo k + 1 collide where the circle closes; ours do not (L = 4, k = 2)."""
    num_layers, prefetch_step = 4, 2
    by_modulo = [position % (prefetch_step + 1) for position in range(num_layers)]
    assert by_modulo[3] == by_modulo[0]
    assert in_conflict(3, 0, num_layers, prefetch_step)
    assert_sound(
        placement.static_windows(num_layers, prefetch_step, frozenset()), num_layers, prefetch_step, frozenset()
    )


def test_a_known_model_needs_two_windows() -> None:
    """61 layers on 8 ranks with k = 1 take 2 windows on every rank, one less than if none of them were owned."""
    counts = {max(placement.static_windows(61, 1, owned_positions(0, 61, 8, rank))) + 1 for rank in range(8)}
    assert counts == {2}
    assert full_window_count(61, 1) == 3


def test_slots_collide_where_the_layer_that_is_copied_next_is_in_another_buffer() -> None:
    """Layer n is in buffer n modulo the prefetch step, and before vllm#54975, layer n + k is copied after layer n.

    With as many buffers as layers, or more, each layer has its own.
    """
    for count, k in product(range(1, 40), range(1, 45)):
        elsewhere = any((n + k) % count % k != n % k for n in range(count))
        assert placement.slots_collide(k, count) == (k < count and elsewhere)
