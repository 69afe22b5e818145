"""Sheets of timing events: a pool that never grows, and a step that is read only when all of it has passed."""

from __future__ import annotations

from swtrace.series.device.sheets import Entry, Sheet, SheetPool
from tests.support.device.simulated_device import SimulatedDevice

LAYERS = 3
COUNT = 2


def test_the_pool_never_grows() -> None:
    """All events are made with the pool, none when sheets are taken; if all are in use, there is none to take."""
    device = SimulatedDevice()
    pool = SheetPool(device, LAYERS, COUNT)
    made = device.calls["event"]
    for _ in range(3):
        sheets, marks = [pool.take_sheet() for _ in range(COUNT)], [pool.take_marks() for _ in range(COUNT)]
        assert pool.take_sheet() is None
        assert pool.take_marks() is None
        for each in (*sheets, *marks):
            assert each is not None
            pool.give_back(each)
    assert device.calls["event"] == made


def test_every_event_was_recorded_before_the_first_step() -> None:
    """A device creates an event at its first recording, which must not happen in a step."""
    device = SimulatedDevice()
    pool = SheetPool(device, LAYERS, COUNT)
    assert device.calls["record"] == device.calls["event"]
    sheet = pool.take_sheet()
    assert sheet is not None
    assert sheet.passed(), "a rehearsal is no part of a step"


def test_a_sheet_that_was_given_back_is_empty() -> None:
    """Nothing of an earlier step is taken for the next one's."""
    device = SimulatedDevice()
    pool = SheetPool(device, LAYERS, 1)
    sheet = pool.take_sheet()
    assert sheet is not None
    sheet.marked = True
    sheet.entries.append(Entry(0, 0, 0, 0, 0, 0))
    device.current_stream().hang()
    sheet.wait(1, device.current_stream())
    sheet.transfer(2).ready.record(device.current_stream())
    pool.give_back(sheet)
    assert pool.take_sheet() is sheet
    assert (sheet.marked, sheet.entries, sheet.waited, sheet.passed()) == (False, [], set(), True)


def test_a_step_has_passed_when_its_waits_and_its_last_broadcast_have() -> None:
    """Whichever is last: a forward's wait, or a broadcast that nothing has waited for yet."""
    device = SimulatedDevice()
    for held in ("forward", "prefetch"):
        sheet = Sheet(device, LAYERS)
        forward, prefetch = device.stream("forward"), device.stream("prefetch")
        work = (forward if held == "forward" else prefetch).hang()
        sheet.wait(0, forward)
        sheet.transfer(1).ready.record(prefetch)
        device.host.advance(1_000)
        assert not sheet.passed()
        device.release(work)
        device.host.advance(1_000)
        assert sheet.passed()


def test_what_has_passed_is_not_asked_for_again() -> None:
    """Each call goes on where the last one stopped, so a long step costs one query per event and one per call."""
    device = SimulatedDevice()
    sheet, stream = Sheet(device, 100), device.current_stream()
    for position in range(50):
        sheet.wait(position, stream)
    work = stream.hang()
    for position in range(50, 100):
        sheet.wait(position, stream)
    device.host.advance(1_000)
    for _ in range(10):
        assert not sheet.passed()
    assert device.calls["query"] == 50 + 10
    device.release(work)
    device.host.advance(1_000)
    assert sheet.passed()
    assert device.calls["query"] == 100 + 10


def test_instants_count_from_the_arrival() -> None:
    """Issue, ready and wait of a layer, by the device's clock; those before the arrival are negative."""
    device = SimulatedDevice(call_ns=0)
    sheet, stream = Sheet(device, LAYERS), device.current_stream()
    events = sheet.transfer(2)
    events.issued.record(stream)
    device.compute(1_000)
    sheet.record(sheet.arrival, stream)
    device.compute(2_000)
    sheet.wait(2, stream)
    device.compute(4_000)
    events.ready.record(stream)
    device.host.advance(10_000)
    assert sheet.passed()
    assert (sheet.issued_ns(2), sheet.wait_ns(2), sheet.ready_ns(2)) == (-1_000, 2_000, 6_000)
