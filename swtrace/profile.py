"""A profile: how long transfers between the ranks of a group take, as ``swtrace probe`` measured it.

The planner reads it beside a recording. It is a JSON file; this module is the only one that knows its layout, and uses
only the standard library.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import combinations
from pathlib import Path
from typing import Any, Self

from swtrace.errors import ProfileError
from swtrace.trace.identity import BROADCAST, H2D, PULL

FORMAT = "swtrace profile"
"""Under the key ``format`` of every profile."""
VERSION = 1
FAMILIES = (BROADCAST, PULL)
"""Kinds of transfers between ranks."""
_FAMILIES = (*FAMILIES, H2D)
"""Kinds of transfers that a profile may have."""
CLOCKS = ("host", "device")
_MAX_BYTES = 1 << 24
"""Largest file that is read."""
_LOW, _HIGH = 0.05, 0.95


@dataclass(frozen=True, slots=True)
class Spread:
    """Quantiles and mean of a sample."""

    p5: float
    p50: float
    p95: float
    mean: float

    @classmethod
    def of(cls, samples: Iterable[float]) -> Self:
        """Return the spread of at least one sample, with quantiles between two neighbours interpolated."""
        ordered = sorted(samples)
        p5, p50, p95 = (_quantile(ordered, share) for share in (_LOW, 0.5, _HIGH))
        return cls(p5, p50, p95, statistics.fmean(ordered))


@dataclass(frozen=True, slots=True)
class Timing:
    """Transfers of one size, with a constant number of them under way on every rank."""

    transport: str
    """``gloo``, ``nccl``, ``pull``, ``h2d``, ..."""
    family: str
    """``broadcast`` or ``pull``; ``h2d`` for copies from pinned host memory to the rank's device."""
    ranks: int
    """Size of the group; of copies to devices, how many ranks have one. All of them transfer at the same time."""
    bytes: int
    """Of one transfer."""
    concurrent: int
    """Transfers that are under way at once on a rank: as soon as one is complete, the next one is issued."""
    computing: bool
    """Whether the ranks computed meanwhile."""
    samples: int
    """Deliveries that were timed, on all ranks."""
    seconds: Spread
    """From the issue of a transfer by its last rank to its arrival at a receiver. With several under way, this
    includes the time for which it shares the channel with them or queues behind them. A copy to a device begins when
    the device comes to it."""
    issue_seconds: Spread
    """What the call takes that issues a transfer: the time that a forward loses even if the transfer is hidden."""
    compute_stretch: Spread | None
    """How many times as long the ranks' compute took while a transfer was under way as without: 1.0 if the transfers
    do not affect it, or are too short to know it. None if the ranks did not compute."""

    @property
    def bytes_per_second(self) -> float:
        """What all transfers of a rank move per second, at the median time. It is the source of some broadcasts."""
        return self.concurrent * self.bytes / self.seconds.p50


@dataclass(frozen=True, slots=True)
class Direction:
    """Transfers from one rank to another, one at a time, while no rank computes."""

    transport: str
    source: int
    """Group rank that sends, or that owns what is read."""
    receiver: int
    """Group rank."""
    bytes: int
    samples: int
    seconds: Spread


@dataclass(frozen=True, slots=True)
class Profile:
    """What one run of ``swtrace probe`` measured."""

    swtrace: str
    """Version of swtrace that measured it."""
    taken: str
    """When the measurement ended: ISO 8601, UTC."""
    hosts: tuple[str, ...]
    """Of the ranks, each name once."""
    ranks: int
    device: str
    """What holds the bytes: ``cpu``, ``cuda:0``, ..."""
    clock: str
    """What timed the transfers: ``host`` or ``device``."""
    cores: int
    """Cores that rank 0 may use, perhaps together with other ranks."""
    threads: int
    """Threads of each rank's compute."""
    timings: tuple[Timing, ...]
    directions: tuple[Direction, ...] = ()

    @classmethod
    def read(cls, path: Path) -> Profile:
        """Read and check a file.

        Raises:
            ProfileError: it cannot be read, or is not a profile that this version knows. The message says where.
        """
        try:
            with path.open("rb") as file:
                content = file.read(_MAX_BYTES + 1)
        except OSError as error:
            raise ProfileError(f"{path} cannot be read: {error.strerror or error}") from error
        try:
            return cls.parse(content)
        except ProfileError as error:
            raise ProfileError(f"{path} is not a usable profile: {error}") from error

    @classmethod
    def parse(cls, content: bytes | str) -> Profile:
        """Return the profile in the content of a file.

        Raises:
            ProfileError: it is not a profile. The message says what is wrong, and where in it.
        """
        if len(content) > _MAX_BYTES:
            raise ProfileError(f"it is larger than {_MAX_BYTES} bytes")
        try:
            document = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise ProfileError(f"no JSON: {error}") from error
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise ProfileError(f'it has no "format": "{FORMAT}"; write one with `swtrace probe --output FILE`')
        if document.get("version") != VERSION:
            raise ProfileError(
                f"it has version {_shown(document.get('version'))}, this swtrace reads version {VERSION}; probe again"
            )
        return _profile({key: value for key, value in document.items() if key not in ("format", "version")})

    def write(self, path: Path) -> None:
        """Write a file.

        Raises:
            ProfileError: it cannot be written.
        """
        try:
            path.write_text(json.dumps(self.to_json(), indent=1, allow_nan=False) + "\n", encoding="utf-8")
        except OSError as error:
            raise ProfileError(f"{path} cannot be written: {error.strerror or error}") from error

    def to_json(self) -> dict[str, object]:
        """Return the content of a file."""
        return {"format": FORMAT, "version": VERSION, **asdict(self)}

    def fixed_and_rate(self, family: str, concurrent: int, computing: bool) -> tuple[float, float] | None:  # noqa: FBT001
        """Return what a transfer takes: seconds independent of its size, and bytes per second beyond them.

        The two are a line through the medians of all sizes that were measured, the one with the least mean *relative*
        error among lines with a fixed part of at least 0. Sizes that span four powers of ten so count alike, and one
        bad size does not move the line. With one size, the fixed part is 0.

        A transfer's time includes what it shares with the others under way. So all of them together move
        ``concurrent`` times the rate.

        Args:
            family: ``broadcast``, ``pull`` or ``h2d``.
            concurrent: transfers under way at once on a rank.
            computing: whether the ranks compute meanwhile.

        Returns:
            None if nothing of the kind was measured.
        """
        points = [(each.bytes, each.seconds.p50) for each in self.of(family, concurrent, computing)]
        return _line(points) if points else None

    def seconds(self, family: str, concurrent: int, nbytes: int, *, computing: bool) -> float | None:
        """Return the typical time of a transfer of any size, from :meth:`fixed_and_rate`; None likewise."""
        line = self.fixed_and_rate(family, concurrent, computing)
        return None if line is None else line[0] + nbytes / line[1]

    def nearest(self, family: str, concurrent: int, nbytes: int, *, computing: bool) -> Timing | None:
        """Return the timing of a kind whose size is nearest by ratio; None if there is none of the kind."""
        found = self.of(family, concurrent, computing)
        return min(found, key=lambda each: abs(math.log(each.bytes / nbytes)), default=None)

    def of(self, family: str, concurrent: int, computing: bool) -> list[Timing]:  # noqa: FBT001
        """Return the timings of a kind, of all sizes."""
        kind = (family, concurrent, computing)
        return [each for each in self.timings if (each.family, each.concurrent, each.computing) == kind]


def _line(points: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """Return the fixed part and the rate of the line with the least mean relative error.

    Such a line passes through two of the points, or through the origin and one of them; so all of these are tried.
    """
    lines = [(0.0, seconds / size) for size, seconds in points]
    for (size, seconds), (other_size, other_seconds) in combinations(points, 2):
        if size != other_size:
            slope = (other_seconds - seconds) / (other_size - size)
            fixed = seconds - slope * size
            if slope > 0 and fixed >= 0:
                lines.append((fixed, slope))
    fixed, slope = min(lines, key=lambda line: sum(abs(line[0] + line[1] * size - s) / s for size, s in points))
    return fixed, 1 / slope


def _quantile(ordered: Sequence[float], share: float) -> float:
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


# ---- reading: every function takes the place in the file, for its errors --------------------------


def _profile(document: Mapping[str, Any]) -> Profile:
    _same_fields(document, Profile, "the profile")
    ranks = _whole(document, "ranks", "the profile", 1)
    hosts = _items(document, "hosts", "the profile")
    if not hosts or not all(isinstance(host, str) and host for host in hosts):
        raise ProfileError(f"the profile: hosts is {_shown(hosts)}, must be a list of names")
    return Profile(
        swtrace=_text(document, "swtrace", "the profile"),
        taken=_text(document, "taken", "the profile"),
        hosts=tuple(hosts),
        ranks=ranks,
        device=_text(document, "device", "the profile"),
        clock=_text(document, "clock", "the profile", CLOCKS),
        cores=_whole(document, "cores", "the profile", 1),
        threads=_whole(document, "threads", "the profile", 1),
        timings=tuple(
            _timing(item, f"timings[{index}]") for index, item in enumerate(_items(document, "timings", "the profile"))
        ),
        directions=tuple(
            _direction(item, f"directions[{index}]", ranks)
            for index, item in enumerate(_items(document, "directions", "the profile"))
        ),
    )


def _timing(item: object, where: str) -> Timing:
    found = _same_fields(item, Timing, where)
    computing, stretch = found["computing"], found["compute_stretch"]
    if not isinstance(computing, bool):
        raise ProfileError(f"{where}: computing is {_shown(computing)}, must be true or false")
    if computing != (stretch is not None):
        raise ProfileError(f"{where}: compute_stretch must be there if computing is true, and null otherwise")
    return Timing(
        transport=_text(found, "transport", where),
        family=_text(found, "family", where, _FAMILIES),
        ranks=_whole(found, "ranks", where, 1),
        bytes=_whole(found, "bytes", where, 1),
        concurrent=_whole(found, "concurrent", where, 1),
        computing=computing,
        samples=_whole(found, "samples", where, 1),
        seconds=_spread(found["seconds"], f"{where}.seconds"),
        issue_seconds=_spread(found["issue_seconds"], f"{where}.issue_seconds"),
        compute_stretch=None if stretch is None else _spread(stretch, f"{where}.compute_stretch"),
    )


def _direction(item: object, where: str, ranks: int) -> Direction:
    found = _same_fields(item, Direction, where)
    return Direction(
        transport=_text(found, "transport", where),
        source=_whole(found, "source", where, 0, ranks - 1),
        receiver=_whole(found, "receiver", where, 0, ranks - 1),
        bytes=_whole(found, "bytes", where, 1),
        samples=_whole(found, "samples", where, 1),
        seconds=_spread(found["seconds"], f"{where}.seconds"),
    )


def _spread(item: object, where: str) -> Spread:
    found = _same_fields(item, Spread, where)
    for name, value in found.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise ProfileError(f"{where}: {name} is {_shown(value)}, must be a number above 0")
    made = Spread(**{name: float(value) for name, value in found.items()})
    if not made.p5 <= made.p50 <= made.p95:
        raise ProfileError(f"{where}: p5, p50 and p95 must not descend")
    return made


def _same_fields(item: object, kind: type, where: str) -> Mapping[str, Any]:
    """Return an object that has exactly the fields of a dataclass."""
    if not isinstance(item, Mapping):
        raise ProfileError(f"{where} is {_shown(item)}, must be an object")
    wanted = {each.name for each in fields(kind)}
    for problem, names in (("no", wanted - item.keys()), ("an unknown", item.keys() - wanted)):
        if names:
            raise ProfileError(f"{where} has {problem} {min(names)!r}")
    return item


def _text(found: Mapping[str, Any], name: str, where: str, choices: Sequence[str] = ()) -> str:
    value = found[name]
    if not isinstance(value, str) or not value or (choices and value not in choices):
        must_be = f"one of: {', '.join(choices)}" if choices else "a text"
        raise ProfileError(f"{where}: {name} is {_shown(value)}, must be {must_be}")
    return value


def _whole(found: Mapping[str, Any], name: str, where: str, low: int, high: int | None = None) -> int:
    value = found[name]
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        must_be = f"a whole number, at least {low}" if high is None else f"a whole number from {low} to {high}"
        raise ProfileError(f"{where}: {name} is {_shown(value)}, must be {must_be}")
    return value


def _items(found: Mapping[str, Any], name: str, where: str) -> list[Any]:
    value = found[name]
    if not isinstance(value, list):
        raise ProfileError(f"{where}: {name} is {_shown(value)}, must be a list")
    return value


def _shown(value: object) -> str:
    """Return a value for an error, in at most 60 characters."""
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."  # noqa: PLR2004 - what a line holds
