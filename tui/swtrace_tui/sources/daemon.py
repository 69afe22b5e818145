"""A daemon, over HTTP: the same facts, computed where the rings are."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from swtrace import asking
from swtrace.errors import AnswerError, SettingsError
from swtrace.ledger.facts import SeriesKey, StepFacts
from swtrace.trace.identity import SeriesInfo
from swtrace_tui.snapshot import EMPTY_FACTS, Link, Snapshot, SourceStatus, empty
from swtrace_tui.sources.decode import ledger_facts, rank_view, series_keys, step_facts

DEFAULT_PORT = 9465
_TIMEOUT_S = 2.0
_ASK_EVERY_S = 0.25
_RETRY_S = 1.0
_KEEP_STEPS = 64
_MAX_LIMIT = 64
_CELLS_PER_ANSWER = 24_000
"""Steps of large series are many numbers: so many cells are asked for at once, older steps are left out and counted."""


class DaemonSource:
    """One daemon.

    Args:
        address: ``host:port``, with or without ``http://``.
    """

    def __init__(self, address: str) -> None:
        self._host, self._port = parse(address)
        self._ask_at = 0.0
        self._cursor = 0
        self._started = 0
        self._limit = _MAX_LIMIT
        self._steps: dict[SeriesKey, deque[StepFacts]] = {}
        self._skipped = 0
        self._lost_since = 0.0
        self._snapshot = empty(SourceStatus(self.name, Link.ASKED))

    @property
    def name(self) -> str:
        """Host and port."""
        return f"[{self._host}]:{self._port}" if ":" in self._host else f"{self._host}:{self._port}"

    def poll(self) -> bool:
        """Ask, if it is time."""
        now = time.monotonic()
        if now < self._ask_at:
            return False
        try:
            query = f"/api/v1/snapshot?since={self._cursor}&limit={self._limit}"
            document = asking.document(self.name, query, timeout_s=_TIMEOUT_S)
        except AnswerError as error:
            self._lose(str(error).removeprefix(f"{self.name}: "), now)
            return False
        if document.get("api") != 1:
            self._lose("it does not speak version 1 of the API", now)
            return False
        try:
            self._take(document)
        except Exception as error:  # noqa: BLE001 (whatever a damaged document makes the decoding raise)
            self._lose(f"its answer is damaged: {error!r}", now)
            return False
        self._lost_since, self._ask_at = 0.0, now + _ASK_EVERY_S
        return False

    def snapshot(self) -> Snapshot:
        """Return what the daemon last said."""
        return self._snapshot

    def close(self) -> None:
        """Do nothing: every question is a connection of its own."""

    def _take(self, document: Mapping[str, Any]) -> None:
        started = int(document.get("started_unix_ns", 0))
        if started != self._started or document["cursor"] < self._cursor:
            # Another daemon than before: its numbers begin again.
            self._started, self._cursor = started, 0
            self._steps.clear()
        keys = series_keys(document)
        facts = ledger_facts(document)
        infos = {series.key: _infos(series.ranks) for series in facts.series}
        for step in document["steps"]:
            key = keys[step["series"]]
            kept = self._steps.setdefault(key, deque(maxlen=_KEEP_STEPS))
            if kept and step["step"] <= kept[-1].step:
                kept.clear()  # The group was started again.
            kept.append(step_facts(step, key, infos[key]))
        for key in [key for key in self._steps if key not in infos]:
            del self._steps[key]
        if self._cursor:
            self._skipped += int(document["skipped"])
        self._cursor = int(document["cursor"])
        cells = sum(len(key.group_ranks) * series.ranks[0].info.num_layers for key, series in _by_key(facts.series))
        self._limit = max(1, min(_MAX_LIMIT, _CELLS_PER_ANSWER // max(1, cells)))
        taken = int(document["taken_ns"])
        problems = "; ".join([*_behind(document), *(each["message"] for each in document.get("problems", [])[:3])])
        self._snapshot = Snapshot(
            sources=(SourceStatus(self.name, Link.LIVE if document["ranks"] else Link.WAITING, problems),),
            ranks=tuple(rank_view(rank, taken) for rank in document["ranks"]),
            facts=facts,
            history={key: tuple(steps) for key, steps in self._steps.items()},
            steps_left_out=self._skipped,
        )

    def _lose(self, text: str, now: float) -> None:
        self._lost_since = self._lost_since or now
        self._ask_at = now + _RETRY_S
        since = f", lost for {now - self._lost_since:.0f} s" if now - self._lost_since >= 1 else ""
        before = self._snapshot
        self._snapshot = Snapshot(
            sources=(SourceStatus(self.name, Link.LOST, f"{text}{since}"),),
            ranks=before.ranks,
            facts=before.facts or EMPTY_FACTS,
            history=before.history,
            steps_left_out=before.steps_left_out,
        )


def parse(address: str) -> tuple[str, int]:
    """Return host and port of ``host``, ``host:port``, ``[v6]:port``, with or without ``http://``.

    Raises:
        SettingsError: it is none of these.
    """
    text = address.strip().removeprefix("http://").rstrip("/")
    if "://" in text or "/" in text:
        raise SettingsError(f"--connect {address!r}: expected HOST:PORT, the daemon serves plain HTTP")
    host, colon, port = text.rpartition(":")
    if not colon or (text.count(":") > 1 and not host.endswith("]")):
        host, port = text, str(DEFAULT_PORT)
    host = host.strip("[]")
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise SettingsError(f"--connect {address!r}: expected HOST:PORT, such as 127.0.0.1:{DEFAULT_PORT}")
    return host, int(port)


def _behind(document: Mapping[str, Any]) -> Iterator[str]:
    """Yield how far the daemon is behind, if it could not read everything before it answered."""
    if not document.get("caught_up", True):
        rings = [rank["ring"] for rank in document["ranks"]]
        pending, lag_ns = sum(ring["pending"] for ring in rings), max((ring["lag_ns"] for ring in rings), default=0)
        yield f"the daemon is catching up: {pending} records, {lag_ns / 1e9:.1f} s behind"


def _infos(ranks: tuple[Any, ...]) -> dict[int, SeriesInfo]:
    return {rank.info.rank_in_group: rank.info for rank in ranks}


def _by_key(series: tuple[Any, ...]) -> list[tuple[SeriesKey, Any]]:
    return [(each.key, each) for each in series if each.ranks]
