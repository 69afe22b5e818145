"""``swtrace probe``: it starts its ranks, writes a profile, and refuses what it cannot do."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from swtrace.profile import Profile
from tests.support.commands import assert_one_line, checked, run_swtrace


def test_a_probe_starts_its_ranks_and_writes_what_the_table_shows(
    rings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One command: a table on stdout, a profile in the file, with the exact size that was asked for."""
    monkeypatch.setenv("SWTRACE_DIR", str(rings))
    output = tmp_path / "profile.json"
    done = checked("probe", "--largest", "1K", "--bytes", "100000", "--seconds", "0", "-o", output)
    profile = Profile.read(output)
    assert {each.bytes for each in profile.timings} == {100000}
    assert {each.transport for each in profile.timings} - {"h2d"} == {"gloo", "pull"}
    assert profile.ranks == 2
    rows = [line for line in done.stdout.splitlines() if line.split()[:1] in (["gloo"], ["pull"], ["h2d"])]
    assert len(rows) == len(profile.timings)
    assert str(output) in done.stderr
    if not torch.accelerator.is_available():
        assert "Not measured: h2d: torch sees no GPU for any rank" in done.stderr
    assert not list(rings.glob("pull-*"))


def test_an_existing_file_is_not_replaced_and_nothing_is_measured(tmp_path: Path) -> None:
    """Without --force, an output that exists is an error before any rank starts."""
    output = tmp_path / "profile.json"
    output.write_text("mine")
    done = run_swtrace(["probe", "-o", str(output)], os.environ)
    assert_one_line(done, 1, "already exists", "--force")
    assert output.read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "environment", "said"),
    [
        (["--ranks", "2"], {"RANK": "0", "WORLD_SIZE": "4"}, "WORLD_SIZE=4"),
        ([], {"RANK": "0", "WORLD_SIZE": "1"}, "at least two"),
        ([], {"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR"),
        (["--largest", "none"], {}, "--largest='none'"),
    ],
)
def test_what_cannot_be_probed_is_a_usage_error(arguments: list[str], environment: dict[str, str], said: str) -> None:
    """A world that a launcher made, one rank alone, no address, a size that is none: one sentence and status 2."""
    assert_one_line(run_swtrace(["probe", *arguments], {**os.environ, **environment}), 2, said)
