"""The contract of a ring's reader, for a ring of any content."""

from __future__ import annotations

from pathlib import Path

from swtrace.errors import RingFormatError
from swtrace.trace import schema
from swtrace.trace.ring_reader import RingReader

MOST_BATCHES = 256


def read_in_every_way(path: Path) -> RingReader | None:
    """Use every operation of a reader on a file, and fail if one violates its contract."""
    try:
        reader = RingReader.open(path)
    except RingFormatError as error:
        assert str(path) in str(error)  # noqa: PT017 - both outcomes are right
        return None
    with reader:
        for index, info in enumerate(reader.series()):
            assert len(info.group_ranks) * info.num_layers <= 1 << 20
            stack = range(info.start_layer, info.start_layer + info.stack_layers)
            assert len(stack) <= 1 << 12
            assert info.layers == tuple(layer for layer in stack if layer in set(info.layers))
            assert len(reader.windows(index)) <= schema.WINDOW_SLOTS
        assert reader.windows(99) == ()
        reader.anchor()
        reader.closed()
        assert not reader.alive()
        for _ in range(MOST_BATCHES):
            before = reader.statistics()
            assert before.written == before.delivered + before.lapped + before.damaged + before.pending
            batch = reader.read(16)
            assert len(batch) <= 16
            after = reader.statistics()
            assert after.written == after.delivered + after.lapped + after.damaged + after.pending
            if after == before and not len(batch):
                break
        assert reader.read(0).size == 0
    return reader
