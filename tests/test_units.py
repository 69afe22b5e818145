"""What numbers look like."""

from __future__ import annotations

import pytest

from swtrace import units


@pytest.mark.parametrize(("which", "text"), [([1], "rank 1"), ([1, 2], "ranks 1, 2"), (["a"], "rank a")])
def test_what_a_noun_refers_to_is_listed(which: list[object], text: str) -> None:
    """The noun is in the plural if it refers to several, and in the singular if it refers to one."""
    assert units.listed("rank", which) == text
