"""When a device's anchors are taken."""

from __future__ import annotations

from swtrace.series.device import anchors
from swtrace.series.device.anchors import Renewals

BOOT_NS = 20_000_000_000_000_001
SECOND_NS = 1_000_000_000


def test_spans_double_until_a_second_and_start_over_after_a_pause() -> None:
    """The first anchors come quickly, later ones once a second; after more than 8 s without, quickly again."""
    renewals = Renewals()
    now_ns = BOOT_NS
    spans = []
    for _ in range(10):
        assert renewals.due(now_ns)
        renewals.taken(now_ns)
        assert not renewals.due(now_ns)
        spans.append(renewals._due_ns - now_ns)
        now_ns = renewals._due_ns
    assert spans == [min(10_000_000 << n, SECOND_NS) for n in range(10)]
    renewals.failed(now_ns)
    assert not renewals.due(now_ns + anchors.RETRY_NS - 1)
    assert renewals.due(now_ns + anchors.RETRY_NS)
    now_ns += 9 * SECOND_NS
    assert renewals.lapsed(now_ns)
    renewals.taken(now_ns)
    assert renewals.due(now_ns + 10_000_000)
