"""Faults on demand: ``swtrace demo --fault KIND:key=value,...``.

Each kind is one class, whose fields are its keys. Either its ranks act at certain moments (:meth:`Fault.due`,
:meth:`Fault.act`), or processes are subject to something while it lasts (:meth:`Fault.imposed`). Each rank's
:class:`Injector` sees to both.
"""

from __future__ import annotations

import math
import os
import signal
import time
from contextlib import ExitStack
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar

from swtrace.cli.demo.busy import BusyProcesses
from swtrace.cli.demo.links import NO_LINKS, Links
from swtrace.cli.demo.report_lines import RankReport, What
from swtrace.closing import Closing
from swtrace.errors import SettingsError
from swtrace.units import listed

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from contextlib import AbstractContextManager

    from swtrace.cli.demo.scenarios import Dials

    Parser = Callable[[str], Any]

MAX_MS = 60_000
MIN_PACED_MS = 0.1
_MAX_PROCESSES = 64
_BROADCASTS = "of another kind, because ranks that pull or share nothing have no connections"


class Place(StrEnum):
    """Where in its loop a rank is."""

    COMPUTE = "compute"
    """In the compute of a layer."""
    ENTRY = "entry"
    """Before a step."""
    COLLECTIVE = "collective"
    """Before the ranks agree on whether to run another step."""


@dataclass(frozen=True, slots=True)
class Moment:
    """Where a rank is, and when."""

    place: Place
    step: int
    layer: int | None
    """In its compute."""


@dataclass(frozen=True, slots=True)
class Target:
    """What a fault is imposed on: this process."""

    rank: int
    links: Links
    layer_bytes: int


def _key(name: str, default: Any, parser: Callable[[str], Parser]) -> Any:
    """Return the field of a key. ``parser`` returns what parses its value, given the name for errors."""
    return field(default=default, metadata={"key": name, "parser": parser})


def _amount(name: str, default: float, high: float | None = None, *, low: float = 0) -> Any:
    def parser(option: str) -> Parser:
        from swtrace.cli.arguments import number

        return number(option, low, high)

    return _key(name, default, parser)


def _count(name: str, default: int, high: int | None = None) -> Any:
    def parser(option: str) -> Parser:
        from swtrace.cli.arguments import whole_number

        return whole_number(option, 1, high)

    return _key(name, default, parser)


def _numbers(name: str) -> Any:
    def parser(option: str) -> Parser:
        def parse(text: str) -> tuple[int, ...]:
            parts = text.split("+")
            if not all(part.isascii() and part.isdigit() for part in parts):
                raise SettingsError.of(option, text, "a number, or several such as 1+3")
            return tuple(sorted(set(map(int, parts))))

        return parse

    return _key(name, (), parser)


def _place(option: str) -> Parser:
    def parse(text: str) -> Place:
        if text not in set(Place):
            raise SettingsError.of(option, text, f"one of: {', '.join(Place)}")
        return Place(text)

    return parse


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A fault of some ranks, for some time."""

    kind: ClassVar[str]
    about: ClassVar[str]
    """What it does, for ``--help``."""

    ranks: tuple[int, ...] = _numbers("rank")
    """Empty: the last one."""
    after_s: float = _amount("after", 0.0)
    """When it begins, since the first step."""
    for_s: float = _amount("for", math.inf)

    @property
    def until_s(self) -> float:
        """When it ends, since the first step."""
        return self.after_s + self.for_s

    @classmethod
    def keys(cls) -> dict[str, tuple[str, Callable[[str], Parser]]]:
        """Return the name and the parser of its fields, by key."""
        return {each.metadata["key"]: (each.name, each.metadata["parser"]) for each in fields(cls)}

    def must_be(self, dials: Dials) -> str | None:
        """Return what it must be in a run with these dials; None if the run can have it."""
        if max(self.ranks, default=0) >= dials.ranks:
            return f"of the ranks 0-{dials.ranks - 1}, with --ranks {dials.ranks}"
        return None

    def sentence(self, rank: int) -> str:
        """Say what happens to one of its ranks."""
        raise NotImplementedError

    def due(self, moment: Moment) -> bool:
        """Whether one of its ranks acts now."""
        del moment
        return False

    def act(self, ends_s: float) -> None:
        """Do what a rank does when it is due. The fault or the run ends in ``ends_s``."""

    def imposed(self, target: Target) -> AbstractContextManager[object] | None:
        """Prepare what a process, of whichever rank, is subject to while it lasts; None if it is to nothing."""
        del target
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Straggler(Fault):
    """A rank that computes longer."""

    kind = "straggler"
    about = "computes `ms` (2) longer in every layer or in those of `layer`, in one of `every` (1) steps"

    ms: float = _amount("ms", 2.0, MAX_MS)
    every: int = _count("every", 1)
    layers: tuple[int, ...] = _numbers("layer")

    def must_be(self, dials: Dials) -> str | None:
        """Refuse layers that the demo lacks, too."""
        if max(self.layers, default=0) >= dials.layers:
            return f"of the layers 0-{dials.layers - 1}, with --layers {dials.layers}"
        return Fault.must_be(self, dials)

    def sentence(self, rank: int) -> str:
        """Return "rank 1 computes 2 ms longer per layer"."""
        where = f"in {listed('layer', self.layers)}" if self.layers else "per layer"
        return f"rank {rank} computes {self.ms:g} ms longer {where}{_in_steps(self.every)}"

    def due(self, moment: Moment) -> bool:
        """Whether this layer of this step takes longer."""
        return (
            moment.place is Place.COMPUTE
            and (not self.layers or moment.layer in self.layers)
            and moment.step % self.every == self.every - 1
        )

    def act(self, ends_s: float) -> None:
        """Compute longer, as the demo computes: asleep."""
        del ends_s
        time.sleep(self.ms * 1e-3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry(Fault):
    """A rank that enters its steps late."""

    kind = "entry"
    about = "enters one of `every` (1) steps `ms` (20) late"

    ms: float = _amount("ms", 20.0, MAX_MS)
    every: int = _count("every", 1)

    def sentence(self, rank: int) -> str:
        """Return "rank 1 enters the step 20 ms late"."""
        return f"rank {rank} enters the step {self.ms:g} ms late{_in_steps(self.every)}"

    def due(self, moment: Moment) -> bool:
        """Whether it enters this step late."""
        return moment.place is Place.ENTRY and moment.step % self.every == self.every - 1

    def act(self, ends_s: float) -> None:
        """Be late."""
        del ends_s
        time.sleep(self.ms * 1e-3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hang(Fault):
    """A rank that stops until the fault or the run ends."""

    kind = "hang"
    about = (
        "hangs: `where` is compute (within a layer), entry (before a step) or collective (while the others are in one)"
    )

    where: Place = field(default=Place.COMPUTE, metadata={"key": "where", "parser": _place})

    def must_be(self, dials: Dials) -> str | None:
        """Refuse what would never end, and a collective where ranks join none."""
        if dials.steps is not None and self.for_s == math.inf:
            return "limited by for=SECONDS, because a run of --steps has no other end"
        if self.where is Place.COLLECTIVE and (dials.steps is not None or not dials.broadcasts):
            return "in compute or entry, because ranks join no collective if they pull or run --steps"
        return Fault.must_be(self, dials)

    def sentence(self, rank: int) -> str:
        """Return "rank 1 hangs in its compute"."""
        where = {Place.COMPUTE: "in its compute", Place.ENTRY: "before a step", Place.COLLECTIVE: "before a collective"}
        return f"rank {rank} hangs {where[self.where]}"

    def due(self, moment: Moment) -> bool:
        """Whether it hangs here."""
        return moment.place is self.where

    def act(self, ends_s: float) -> None:
        """Hang."""
        time.sleep(ends_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill(Fault):
    """A rank that is killed."""

    kind = "kill"
    about = "is killed (SIGKILL) within a step"

    def sentence(self, rank: int) -> str:
        """Return "rank 1 is killed"."""
        return f"rank {rank} is killed"

    def due(self, moment: Moment) -> bool:
        """Whether it is within a step."""
        return moment.place is Place.COMPUTE

    def act(self, ends_s: float) -> None:
        """Die, without any clean-up."""
        del ends_s
        os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Paced(Fault):
    """A rank whose connections the kernel paces, one way."""

    ms: float = _amount("ms", 10.0, MAX_MS, low=MIN_PACED_MS)

    def must_be(self, dials: Dials) -> str | None:
        """Refuse ranks without connections."""
        return Fault.must_be(self, dials) if dials.broadcasts else _BROADCASTS

    def pace(self, target: Target, to: Collection[int]) -> AbstractContextManager[object]:
        """Pace what this process sends to some ranks, so that a layer takes :attr:`ms`."""
        return target.links.paced(to, target.layer_bytes / (self.ms * 1e-3))


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowLink(Paced):
    """A receiver with a slow link. The kernel paces what is sent to it, so nothing else of it is slow."""

    kind = "slow-link"
    about = "has a slow link: each transfer to it takes `ms` (10)"

    def sentence(self, rank: int) -> str:
        """Return "each transfer to rank 1 takes 10 ms"."""
        return f"each transfer to rank {rank} takes {self.ms:g} ms"

    def imposed(self, target: Target) -> AbstractContextManager[object] | None:
        """Pace what this process sends to the ranks of the fault."""
        return self.pace(target, self.ranks)


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowSource(Paced):
    """A source that sends slowly."""

    kind = "slow-source"
    about = "sends slowly: each transfer from it takes `ms` (10)"

    def sentence(self, rank: int) -> str:
        """Return "each transfer from rank 1 takes 10 ms"."""
        return f"each transfer from rank {rank} takes {self.ms:g} ms"

    def imposed(self, target: Target) -> AbstractContextManager[object] | None:
        """Pace all that this process sends, if it is one of the ranks of the fault."""
        return self.pace(target, target.links.peers if target.rank in self.ranks else ())


@dataclass(frozen=True, slots=True, kw_only=True)
class Steal(Fault):
    """A rank that shares its core with other processes."""

    kind = "steal"
    about = "shares a core with `processes` (2) busy processes, and keeps it busy too while it computes"

    processes: int = _count("processes", 2, _MAX_PROCESSES)

    def sentence(self, rank: int) -> str:
        """Return "rank 1 shares a core with 2 busy processes"."""
        return f"rank {rank} shares a core with {self.processes} busy process{'' if self.processes == 1 else 'es'}"

    def imposed(self, target: Target) -> AbstractContextManager[object] | None:
        """Start the processes, if this is one of the ranks of the fault."""
        return BusyProcesses(target.rank, self.processes) if target.rank in self.ranks else None


KINDS: dict[str, type[Fault]] = {
    fault.kind: fault for fault in (Straggler, Entry, SlowLink, SlowSource, Steal, Hang, Kill)
}
_HELP_OF_ALL = """\
All faults have the keys `rank`, such as 1, or 1+3 for two of them (default: the last); `after`, when the fault begins,
and `for`, how long it lasts, in seconds (default: all the time). The other keys depend on the kind. A rank with

"""
HELP = _HELP_OF_ALL + "\n".join(f"* `{name}` {fault.about}" for name, fault in KINDS.items())
"""All kinds, in Markdown."""


def parse(text: str, ranks: int | None = None) -> Fault:
    """Return the fault that a ``--fault`` names; with the number of ``ranks``, its default rank is the last of them.

    Raises:
        SettingsError: there is no such fault, or it has no such key or value.
    """
    kind, _, rest = text.partition(":")
    if kind not in KINDS:
        raise SettingsError.of("--fault", text, f"KIND or KIND:key=value,... with a KIND of: {', '.join(KINDS)}")
    keys, values = KINDS[kind].keys(), dict[str, Any]()
    for pair in rest.split(",") if rest else ():
        key, _, value = pair.partition("=")
        if key not in keys:
            raise SettingsError.of("--fault", text, f"{kind}:key=value,... with the keys: {', '.join(keys)}")
        name, parser = keys[key]
        values[name] = parser(f"--fault {kind}:{key}")(value)
    fault = KINDS[kind](**values)
    return fault if fault.ranks or ranks is None else replace(fault, ranks=(ranks - 1,))


class Injector(Closing):
    """The faults of a run, as one rank carries them out."""

    def __init__(self, dials: Dials, rank: int) -> None:
        """Prepare the faults; :meth:`start` starts their clock. All ranks must do this together."""
        self._faults = dict(zip(dials.faults, dials.injected, strict=True))
        self._rank = rank
        paced = any(isinstance(fault, Paced) for fault in self._faults.values())
        target = Target(rank, Links.find(rank) if paced else NO_LINKS, dials.layer_bytes)
        self._imposed = {text: fault.imposed(target) for text, fault in self._faults.items()}
        self._active: dict[str, ExitStack] = {}
        self._begun: set[str] = set()
        self._ends_s = dials.seconds if dials.steps is None else math.inf
        self._start_s = time.monotonic()

    @property
    def awake(self) -> bool:
        """Whether this rank computes on its core instead of asleep, so that it can lack the core."""
        return any(isinstance(fault, Steal) and self._rank in fault.ranks for fault in self._faults.values())

    def start(self) -> None:
        """Begin to count seconds."""
        self._start_s = time.monotonic()

    def at(self, place: Place, step: int, layer: int | None = None) -> None:
        """Do what the faults do to this rank here and now."""
        for text, fault in self._faults.items():
            elapsed_s, ends_s = time.monotonic() - self._start_s, min(fault.until_s, self._ends_s)
            lasts = fault.after_s <= elapsed_s < ends_s
            if place is Place.ENTRY and self._imposed[text] is not None:
                self._impose(text, lasts=lasts)
            if lasts and self._rank in fault.ranks and fault.due(Moment(place, step, layer)):
                self._report(text)
                fault.act(ends_s - elapsed_s)

    def close(self) -> None:
        """End what is imposed."""
        for text in self._faults:
            self._impose(text, lasts=False)

    def _impose(self, text: str, *, lasts: bool) -> None:
        imposed = self._imposed[text]
        if lasts and imposed is not None and text not in self._active:
            self._active[text] = ExitStack()
            self._active[text].enter_context(imposed)
            if self._rank in self._faults[text].ranks:
                self._report(text)
        elif not lasts and text in self._active:
            self._active.pop(text).close()
            self._imposed[text] = None

    def _report(self, text: str) -> None:
        if text not in self._begun:
            self._begun.add(text)
            RankReport(What.FAULT, self._rank, unix_ns=time.time_ns(), text=text).write()


def _in_steps(every: int) -> str:
    return "" if every == 1 else f", once every {every} steps"
