"""Trace contexts are read from W3C headers, and invalid ones are ignored."""

from __future__ import annotations

import pytest

from swtrace.trace.request_link import RequestLink

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.mark.parametrize("header", [f"00-{TRACE}-{SPAN}-01", f"00-{TRACE}-{SPAN}-03", f"cc-{TRACE}-{SPAN}-01-later"])
def test_a_sampled_context_is_a_link(header: str) -> None:
    """Both ids come back as numbers, also from a later version of the header with more parts."""
    link = RequestLink.of_traceparent(header)
    assert link == (int(TRACE, 16), int(SPAN, 16))


@pytest.mark.parametrize(
    "header",
    [
        None,
        7,
        "",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE}-{SPAN}-00",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE[1:]}-{SPAN}-01",
    ],
)
def test_other_headers_give_no_link(header: object) -> None:
    """A missing, invalid or unsampled context has no span that a link could lead to."""
    assert RequestLink.of_traceparent(header) is None
