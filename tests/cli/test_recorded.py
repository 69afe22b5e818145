"""Commands that read recordings: what cannot be done is one line."""

from __future__ import annotations

import pytest

from tests.support.commands import checked


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["stats", "README.md"], 1, "not a swtrace recording"),
        (["stats", "nowhere.swrec"], 1, "No such file"),
        (["record", "-o", "/nowhere/x.swrec"], 1, "No such file"),
        (["record", "-o", "x.swrec", "--keep", "3"], 2, "--keep needs --rotate"),
        (["record", "-o", "x.swrec", "--max-size", "much"], 2, "--max-size='much': must be a size"),
        (["record", "-o", "x.swrec", "--max-size", "1"], 2, "--max-size='1': must be at least 64K"),
        (["record", "-o", "x.swrec", "--rotate", "1"], 2, "--rotate='1': must be at least 64K"),
        (["record", "-o", "x.swrec", "--rotate", ""], 2, "--rotate='': must be a size"),
        (["record", "-o", "x.swrec", "--duration", "-1"], 2, "must be a number of seconds, at least 0"),
        (["record", "-o", "x.swrec", "--duration", "nan"], 2, "must be a number of seconds, at least 0"),
    ],
)
def test_what_cannot_be_done_is_one_line(arguments: list[str], code: int, message: str) -> None:
    """A user's mistake ends in one line on stderr and an exit status."""
    done = checked(*arguments, code=code)
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""
