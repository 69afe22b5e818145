"""Names the rank that died, after an error in a collective. Runs once, when time no longer matters."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

from torch import distributed as dist

from swtrace.errors import TransportError
from swtrace.series.presence import announce, announced, gave_up, give_up
from swtrace.trace.liveness import ended_ranks, process_ended
from swtrace.units import listed

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from swtrace.series.group import Group
    from swtrace.series.layer import SeriesLayer
    from swtrace.trace.recorder import Recorder

PATIENCE_S = 3.0
"""How long to look for the dead rank, because a dying process does not close its sockets and its ring at once. The
series has ended anyway, so waiting costs nothing."""
BEFORE_STEPS = "before the first step"
"""Where a series is that has reached no layer yet."""

_POLL_S = 0.02
_OWN_ERROR_S = 1.0
"""How long a call whose peer has died may take to raise an error of its own."""

_COLLECTIVE_WORDS = re.compile(r"gloo|nccl|connection|socket|store|peer|time(d )?out", re.IGNORECASE)
"""Words in errors that a peer's death may have caused. For all other errors the peers are not checked."""

Result = TypeVar("Result")


class Peers:
    """The other ranks of a series on this host: which of them died, as far as their rings and processes show it."""

    def __init__(self, where: str, group: Group, ranks: Sequence[int]) -> None:
        """Announce this rank to the others.

        Args:
            where: names series and rank in errors.
            group: the ranks, with torch's numbers.
            ranks: the run's numbers of the same ranks.
        """
        self._where = where
        self._ranks = ranks
        self._numbers: dict[int, int] = {}
        """The other ranks' numbers in the torch world, by rank."""
        self._died = ""
        """The first ranks that were seen to have died, in words. Others may have ended because of them."""
        self.processes: dict[int, str] = {}
        """The names of the other ranks' processes, as far as they are known."""
        self.recorder: Recorder | None = None
        """This rank's, once its ring is open."""
        self.untraced: Collection[int] = ()
        """Ranks without a ring."""
        if group.device_group is not None and dist.is_available() and dist.is_initialized():
            self._numbers = dict(zip(ranks, group.ranks, strict=False))
            del self._numbers[ranks[group.rank_in_group]]
            with suppress(RuntimeError):  # without the store, whose host has ended, nothing is known of the others
                announce()
        self.meet()

    def meet(self) -> None:
        """Learn which processes the other ranks are, as far as they have announced themselves."""
        with suppress(RuntimeError):
            for rank in self._numbers.keys() - self.processes.keys():
                if name := announced(self._numbers[rank]):
                    self.processes[rank] = name

    def gone(self) -> str:
        """Return the ranks that died, in words; if none has, those that ended; empty if none is known."""
        died, ended = self._lost() if not self._died else ([], [])
        if died:
            self._died = f"{listed('rank', died)} died"
        if self._died:
            return self._died
        return f"{listed('rank', ended)} {'has' if len(ended) == 1 else 'have'} ended" if ended else ""

    def unless_gone(self, call: Callable[[], Result]) -> Result:
        """Return the result of a call that may wait for the other ranks in vain.

        Raises:
            TransportError: a rank is gone, and the call goes on waiting for it.
        """
        results: list[Result] = []
        errors: list[BaseException] = []
        finished = threading.Event()

        def run() -> None:
            try:
                results.append(call())
            except BaseException as error:  # noqa: BLE001 (raised in the caller's thread)
                errors.append(error)
            finished.set()

        threading.Thread(target=run, name="swtrace-connect", daemon=True).start()
        while not finished.wait(_POLL_S):
            if self.gone() and not finished.wait(_OWN_ERROR_S):
                raise TransportError("this rank would still wait for it")
        if errors:
            raise errors[0]
        return results[0]

    def describe_loss(self, layer: SeriesLayer | None, error: RuntimeError) -> str:
        """Return what happened, on which layer, and which ranks are known to be dead; untraced ranks may not be."""
        if layer is None:
            what = f"{self._where}, {BEFORE_STEPS}: the ranks could not agree"
        elif layer.owned:
            what = f"{self._where}, layer {layer.layer_idx}: its broadcast could not be sent"
        else:
            source = self._ranks[layer.source]
            what = f"{self._where}, layer {layer.layer_idx}: did not arrive from rank {source}, its source"
        gone = self.find()
        unseen = sorted(set(self.untraced).difference(self.processes))
        if gone:
            what += f" ({gone})"
        elif self.recorder is not None and unseen:
            runs = f"{listed('rank', unseen)} run{'s' if len(unseen) == 1 else ''}"
            what += f" ({runs} untraced and may have died; no other rank on this host has)"
        elif self.recorder is not None or self.processes:
            what += " (no rank on this host is known to have died)"
        return f"{what}: {reason(error)}"

    def describe_death(self, place: str, error: Exception) -> str:
        """Return which ranks are gone while this one was in another collective than the series'; empty if unknown.

        Args:
            place: series, rank, and the layer that the forward had reached.
            error: the collective's.
        """
        if not _COLLECTIVE_WORDS.search(f"{type(error).__name__} {error}"):
            return ""
        gone = self.find()
        return gone and f"{place}: {gone}; this rank was in another collective: {reason(error)}"

    def describe_unconnected(self, error: RuntimeError) -> str:
        """Return that the ranks could not connect to each other, and which ranks are gone."""
        gone = self._died or self.find()
        names = f" ({gone})" if gone else ""
        return f"{self._where}, {BEFORE_STEPS}: the ranks could not connect to each other{names}: {reason(error)}"

    def find(self) -> str:
        """Return the ranks that are gone, in words, once they are seen to be; empty if none is."""
        self.meet()
        if self.recorder is None and not self.processes:
            return ""
        deadline = time.monotonic() + PATIENCE_S
        before = ""
        while True:
            gone = self.gone()
            # A rank that ended because it lost another one is seen before that one only in a first look.
            if self._died or (gone and gone == before) or time.monotonic() > deadline:
                break
            before = gone
            time.sleep(_POLL_S)
        if gone:
            give_up()
        return gone

    def _lost(self) -> tuple[list[int], list[int]]:
        """Return the ranks that died, and those that ended otherwise."""
        recorder = self.recorder
        closed = {} if recorder is None else ended_ranks(recorder.path.parent, recorder.identity.run_id)
        died, ended = [], []
        for rank in self._ranks:
            name = self.processes.get(rank)
            over = process_ended(name) if name is not None else rank in closed
            if closed.get(rank) is False or (over and rank not in closed and not gave_up(self._numbers[rank])):
                died.append(rank)
            elif over:
                ended.append(rank)
        return died, ended


def reason(error: Exception) -> str:
    """Return the first line of a collective's error, and which setting changes how long it waits."""
    line = str(error).strip().partition("\n")[0]
    if re.search(r"time(d )?out", line, re.IGNORECASE) and "SWTRACE_TIMEOUT" not in line:
        line = f"{line}; SWTRACE_TIMEOUT sets how long a rank waits for a peer"
    return line
