"""Windows are allocated once, where the first forward reads them; a sample covers all of a payload."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from swtrace.series.layer import SAMPLES, Window, WindowPool, sample
from swtrace.series.payload import PayloadLayout

CPU = torch.device("cpu")
LAYOUT = PayloadLayout.of({"weight": torch.zeros(4, 4)}, tagged=True)


@pytest.mark.parametrize("nbytes", [1, 7, 8, 9, 1000, 1 << 16, (1 << 16) + 3])
def test_a_sample_is_a_view_of_a_few_words(nbytes: int) -> None:
    """Its size does not grow with the payload, and it shows what is written later."""
    payload = torch.zeros(nbytes, dtype=torch.uint8)
    words = sample(payload)
    assert 1 <= len(words) <= 2 * SAMPLES
    payload.fill_(1)
    assert (words != 0).all()


@pytest.mark.parametrize("count", [1, 63, 64, 65, 1000, 1 << 16])
def test_a_sample_is_spread_over_all_of_a_payload(count: int) -> None:
    """No stretch of the payload, its end included, is longer without a sampled word than a 32nd of it."""
    words = torch.zeros(count, dtype=torch.int64)
    sample(words.view(torch.uint8)).fill_(1)
    marked = [-1, *words.nonzero().flatten().tolist(), count]
    assert max(after - before for before, after in pairwise(marked)) <= max(1, count // 32)


def test_a_sample_does_not_stay_in_one_column() -> None:
    """Of a square matrix it has words of many columns, so a write to a few columns is seen."""
    matrix = torch.zeros(64, 64, dtype=torch.int64)
    sample(matrix.view(-1).view(torch.uint8)).fill_(1)
    assert int((matrix.sum(dim=0) > 0).sum()) > 16


@pytest.mark.parametrize("prefetch_step", [0, 1, 3])
def test_rolling_windows_receive_the_first_layers_where_the_first_forward_reads_them(prefetch_step: int) -> None:
    """The first k layers have a window each, and all others are received in the one that is left."""
    pool = WindowPool("rolling", 8, prefetch_step, frozenset({0, 2}))
    assert pool.count == prefetch_step + 1
    assert [pool.landing(position) for position in range(8)] == [
        *range(prefetch_step),
        *[prefetch_step] * (8 - prefetch_step),
    ]


def test_a_window_is_allocated_when_it_is_needed_and_once() -> None:
    """A window that was taken out, because its layout is not the final one, is replaced by a new one."""
    pool = WindowPool("static", 6, 1, frozenset())
    early = pool.window(1, LAYOUT, CPU)
    assert pool.window(1, LAYOUT, CPU) is early
    assert pool.take_out(1) is early
    with pytest.raises(KeyError):
        pool.take_out(1)
    windows = pool.complete(LAYOUT, CPU)
    assert early not in windows
    assert windows == pool.complete(LAYOUT, CPU)
    assert [window.index for window in windows] == list(range(pool.count))


def test_a_renewed_window_leaves_its_bytes_and_keeps_its_tag() -> None:
    """Holders of a view still see what they read; the new memory has the tag of the layer that the window holds."""
    window = Window(0, LAYOUT, CPU)
    (view,) = window.views
    view.fill_(3)
    assert window.tag is not None
    window.tag.fill_(7)
    window.renew()
    window.views[0].fill_(4)
    assert (view == 3).all()
    assert window.pointers == (window.views[0].data_ptr(),) != (view.data_ptr(),)
    assert int(window.tag) == 7
