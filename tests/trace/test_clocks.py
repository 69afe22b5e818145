"""A clock is known by its boot and its time namespace, and tied to calendar time."""

from __future__ import annotations

from pathlib import Path

from swtrace.trace.clocks import ClockAnchor, boot_id, clock_offset


def test_an_anchor_ties_both_clocks() -> None:
    """An anchor converts an instant by the difference of its two clocks."""
    anchor = ClockAnchor(1000, 5_000_000)
    assert anchor.to_realtime(1500) == 5_000_500
    taken = ClockAnchor.take()
    assert taken.to_realtime(taken.monotonic_ns) == taken.realtime_ns


def test_a_boot_has_a_name() -> None:
    """Processes of one boot agree on its id, which is not empty."""
    assert boot_id() == boot_id() != ""


def test_a_clock_is_known_by_its_time_namespace(tmp_path: Path) -> None:
    """The kernel's offset of CLOCK_MONOTONIC is the clock's; unreadable is unknown, a kernel without is 0."""
    offsets = tmp_path / "timens_offsets"
    offsets.write_text("monotonic        1000         5\nboottime         0         0\n")
    assert clock_offset(offsets) == "1000.000000005"
    offsets.write_text("monotonic           0         0\nboottime         7         0\n")
    assert clock_offset(offsets) == "0"
    offsets.write_text("")
    assert clock_offset(offsets) == "unknown"
    offsets.unlink()
    assert clock_offset(offsets) == "0"
    assert clock_offset(tmp_path / "hidden" / "timens_offsets") == "unknown"
