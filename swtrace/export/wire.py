"""The protobuf wire format, as far as a Perfetto trace needs it: four kinds of fields.

Written by hand because the official Python schema of Perfetto alone is 1.7 MB and its runtime another
dependency, for a dozen fields; tests read the result back with that schema.
"""

from __future__ import annotations

import struct


def varint(value: int) -> bytes:
    """Return an unsigned number of up to 64 bits."""
    value &= 0xFFFFFFFFFFFFFFFF
    out = bytearray()
    while value > 0x7F:  # noqa: PLR2004 - seven bits a byte
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def number(field: int, value: int) -> bytes:
    """Return a field that holds a number."""
    return varint(field << 3) + varint(value)


def fixed(field: int, value: int) -> bytes:
    """Return a field of eight bytes."""
    return varint(field << 3 | 1) + struct.pack("<Q", value & 0xFFFFFFFFFFFFFFFF)


def message(field: int, content: bytes) -> bytes:
    """Return a field that holds bytes or another message."""
    return varint(field << 3 | 2) + varint(len(content)) + content


def text(field: int, value: str) -> bytes:
    """Return a field that holds a text."""
    return message(field, value.encode())
