"""Profiles: what is written is read back, what is not a profile is refused, and a line is fitted to its sizes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from swtrace.errors import ProfileError
from swtrace.profile import Direction, Profile, Spread, Timing

MIB = 1 << 20


def spread(value: float) -> Spread:
    return Spread(0.9 * value, value, 1.2 * value, value)


def timing(nbytes: int, seconds: float, *, concurrent: int = 1, stretch: float | None = None) -> Timing:
    return Timing(
        transport="gloo",
        family="broadcast",
        ranks=2,
        bytes=nbytes,
        concurrent=concurrent,
        computing=stretch is not None,
        samples=20,
        seconds=spread(seconds),
        issue_seconds=spread(seconds / 10),
        compute_stretch=None if stretch is None else spread(stretch),
    )


def profile(*timings: Timing) -> Profile:
    return Profile(
        swtrace="0.1.0",
        taken="2026-11-28T18:00:00+00:00",
        hosts=("a", "b"),
        ranks=2,
        device="cpu",
        clock="host",
        cores=2,
        threads=1,
        timings=timings,
        directions=(Direction("gloo", 1, 0, MIB, 8, spread(1e-3)),),
    )


def test_a_profile_that_was_written_is_read_back_unchanged(tmp_path: Path) -> None:
    """Writing and reading keeps every field."""
    copies = replace(timing(MIB, 1e-4), transport="h2d", family="h2d", ranks=1)
    written = profile(timing(MIB, 1e-3), timing(MIB, 2e-3, concurrent=4, stretch=1.5), copies)
    written.write(tmp_path / "profile.json")
    assert Profile.read(tmp_path / "profile.json") == written


def test_a_line_of_fixed_time_and_rate_is_found_although_one_size_is_far_off_it() -> None:
    """Sizes from 64 KiB to 16 MiB on a line of 0.2 ms and 1 GB/s, one of them three times as slow, give that line."""
    sizes = [MIB >> 4, MIB >> 2, MIB, 4 * MIB, 16 * MIB]
    made = profile(*(timing(size, (2e-4 + size / 1e9) * (3 if size == MIB else 1)) for size in sizes))
    assert made.fixed_and_rate("broadcast", 1, computing=False) == pytest.approx((2e-4, 1e9))


def test_a_line_never_promises_time_below_zero() -> None:
    """If larger transfers are less efficient than small ones, the fixed part is 0, not negative."""
    made = profile(timing(MIB, 1e-3), timing(4 * MIB, 9e-3))
    fixed, rate = made.fixed_and_rate("broadcast", 1, computing=False) or (-1.0, 0.0)
    assert fixed == 0
    assert MIB / 1e-3 >= rate >= 4 * MIB / 9e-3


def test_what_was_not_measured_has_neither_line_nor_stretch() -> None:
    """Other concurrency, other family, computing: None, not a guess."""
    made = profile(timing(MIB, 1e-3))
    assert made.fixed_and_rate("broadcast", 2, computing=False) is None
    assert made.fixed_and_rate("pull", 1, computing=False) is None
    assert made.nearest("broadcast", 1, MIB, computing=True) is None


def test_the_stretch_is_that_of_the_nearest_size() -> None:
    """Nearest by ratio: 3 MiB is nearer to 4 MiB than to 1 MiB."""
    made = profile(timing(MIB, 1e-3, stretch=1.2), timing(4 * MIB, 4e-3, stretch=1.8))
    nearest = made.nearest("broadcast", 1, 3 * MIB, computing=True)
    assert nearest is not None
    assert nearest.compute_stretch == spread(1.8)


def test_with_several_under_way_they_move_that_many_times_the_bytes() -> None:
    """Four transfers under way, each taking 4 ms for 1 MiB, bring 1 MiB per ms."""
    assert timing(MIB, 4e-3, concurrent=4).bytes_per_second == pytest.approx(MIB / 1e-3)


def _set(*path: str | int, to: object) -> Callable[[dict[str, Any]], object]:
    def change(document: dict[str, Any]) -> None:
        found: Any = document
        for key in path[:-1]:
            found = found[key]
        found[path[-1]] = to

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_set("format", to="other"), 'no "format": "swtrace profile"'),
        (_set("version", to=2), "version 2, this swtrace reads version 1"),
        (_set("surprise", to=1), "the profile has an unknown 'surprise'"),
        (lambda document: document.pop("cores"), "the profile has no 'cores'"),
        (_set("ranks", to=True), "the profile: ranks is true"),
        (_set("hosts", to=[]), "hosts is []"),
        (_set("timings", to={}), "timings is {}, must be a list"),
        (_set("timings", 1, to=None), "timings[1] is null"),
        (_set("timings", 1, "family", to="ring"), 'timings[1]: family is "ring", must be one of: broadcast, pull'),
        (_set("timings", 1, "bytes", to=0), "timings[1]: bytes is 0, must be a whole number, at least 1"),
        (_set("timings", 1, "compute_stretch", to=None), "timings[1]: compute_stretch"),
        (_set("timings", 0, "seconds", "p5", to=-1), "timings[0].seconds: p5 is -1"),
        (_set("timings", 0, "seconds", "p5", to=9), "timings[0].seconds: p5, p50 and p95 must not descend"),
        (_set("timings", 0, "seconds", "mean", to=float("nan")), "timings[0].seconds: mean is NaN"),
        (_set("directions", 0, "source", to=2), "directions[0]: source is 2, must be a whole number from 0 to 1"),
    ],
)
def test_what_is_not_a_profile_is_refused_with_its_place(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], said: str
) -> None:
    """Every wrong field is an error that names the file, the place and what must be there."""
    made = profile(timing(MIB, 1e-3), timing(MIB, 2e-3, stretch=1.5))
    document = json.loads(json.dumps(made.to_json()))
    change(document)
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(document))
    with pytest.raises(ProfileError) as raised:
        Profile.read(path)
    assert str(path) in str(raised.value)
    assert said in str(raised.value)


def test_no_damage_to_a_file_raises_anything_but_a_profile_error() -> None:
    """Bytes cut, changed or inserted: a profile, or a ProfileError."""
    content = json.dumps(replace(profile(timing(MIB, 1e-3)), hosts=("a",)).to_json()).encode()
    random, refused = Random(17), 0  # noqa: S311 - damage, not a secret
    for _ in range(500):
        damaged = bytearray(content)
        start = random.randrange(len(content))
        damaged[start : start + random.randrange(4)] = random.randbytes(random.randrange(4))
        try:
            Profile.parse(bytes(damaged))
        except ProfileError:
            refused += 1
    assert refused > 250


def test_a_file_that_is_missing_or_huge_is_refused(tmp_path: Path) -> None:
    """A missing file, and one that is larger than any profile, are errors that name it."""
    with pytest.raises(ProfileError, match=r"none.json cannot be read: No such file"):
        Profile.read(tmp_path / "none.json")
    with (tmp_path / "huge.json").open("wb") as file:
        file.truncate(1 << 25)
    with pytest.raises(ProfileError, match=r"huge.json is not a usable profile: it is larger than"):
        Profile.read(tmp_path / "huge.json")
    with pytest.raises(ProfileError, match=r"cannot be written: No such file"):
        profile().write(tmp_path / "no" / "such.json")
