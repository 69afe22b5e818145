"""The one ring of this process: when it is made, where, and under which run id.

The first traced series makes it, once the group has agreed on a run id. It is closed when the process
ends. A process that is killed leaves it readable. If it cannot be made, the process runs untraced, logs
that once, and reports it to the other ranks.

Groups may be disjoint at first and meet in a later series, so a generated run id must be the same in the
whole torch world. The first rank to ask writes its own id to the world's store, and all others read it
there. No rank waits for another, so a rank that shares nothing can ask as well.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from multiprocessing.util import Finalize
from typing import TYPE_CHECKING

from swtrace.errors import RingCreateError, SettingsError
from swtrace.series.agreement import RunIdProposal
from swtrace.settings import Settings

if TYPE_CHECKING:
    from swtrace.trace.recorder import Recorder
    from swtrace.trace.schema import Collective

logger = logging.getLogger(__name__)

RecorderSource = Callable[[str, int, Settings], "Recorder"]
"""Returns the recorder of this process, given run id, global rank and the settings of the series; raises
RingCreateError if it cannot make one."""


class _Process:
    """The recorder of this process, and what is known about it."""

    recorder: Recorder | None = None
    failure: RingCreateError | None = None
    """Why there is none, although a series asked for one."""
    model: str = ""
    rings: int = 0
    """Attempts to make a ring so far. A later ring belongs to another run, on every rank alike."""


def describe_model(model: str) -> None:
    """Set the name of the model, for display. Call it before the first traced series is post-processed."""
    _Process.model = model


def described_model() -> str:
    """Return the name of the model; empty if unknown."""
    return _Process.model


def propose_run_id(given: str = "") -> RunIdProposal:
    """Return the run id that this process uses, was given, or would generate."""
    if _Process.recorder is not None:
        return RunIdProposal(_Process.recorder.identity.run_id, fixed=True)
    if given:
        return RunIdProposal(given, fixed=True)
    generated = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
    return RunIdProposal(_first_in_the_world(generated), fixed=False)


def _first_in_the_world(run_id: str) -> str:
    """Return the run id of the first rank of this torch world that asked; ``run_id`` if this is the first."""
    from torch import distributed as dist

    if not dist.is_available() or not dist.is_initialized():
        return run_id
    from swtrace.series.presence import world_store

    answer: bytes = world_store().compare_set(f"swtrace/run-id/{_Process.rings}", "", run_id)
    return answer.decode()


def process_recorder(run_id: str, rank: int, settings: Settings | None = None) -> Recorder:
    """Return this process's recorder; make its ring on the first call.

    Args:
        run_id: the id that all ranks agreed on.
        rank: of this process.
        settings: the ring's place and size; by default from the environment.

    Raises:
        RingCreateError: the ring cannot be made. It is tried, and the failure logged, only once.
    """
    if _Process.failure is not None:
        raise _Process.failure
    if _Process.recorder is None:
        settings = settings or Settings.from_environment()
        try:
            _Process.recorder = _make(run_id, rank, settings)
        except RingCreateError as failure:
            _Process.failure = failure
            if not settings.strict:  # otherwise it becomes an error
                logger.warning("swtrace: rank %d runs untraced: %s", rank, failure)
            raise
        finally:
            _Process.rings += 1
        # Unlike atexit, this also runs at the end of multiprocessing's children.
        Finalize(None, close, exitpriority=0)
    return _Process.recorder


def existing_recorder() -> Recorder | None:
    """Return this process's recorder, if it has one."""
    return _Process.recorder


@contextmanager
def in_collective(kind: Collective) -> Iterator[None]:
    """Mark that this process's rank is in a collective that no series issued, if it is traced and not in one already.

    Collectives whose call does not block the host are marked only while they are launched.
    """
    recorder = _Process.recorder
    if recorder is None or not recorder.enter_collective(kind):
        yield
        return
    try:
        yield
    finally:
        recorder.leave_collective()


def _make(run_id: str, rank: int, settings: Settings) -> Recorder:
    from swtrace.trace.recorder import Recorder, identity_of_this_process

    identity = identity_of_this_process(run_id, rank, _Process.model)
    try:
        directory = settings.ring_directory()
    except (SettingsError, OSError) as error:
        raise RingCreateError(str(error)) from error
    return Recorder.create(directory, identity, records=settings.ring_records, keep_s=settings.ring_keep_s)


def exchange(recorder: Recorder | None) -> Recorder | None:
    """Replace this process's recorder; return the previous one, which stays open.

    With None, the next traced series makes a ring from its settings. For tests, which each need their own ring.
    """
    before, _Process.recorder, _Process.failure = _Process.recorder, recorder, None
    return before


def announce_close() -> None:
    """Mark the process's ring as closed before its last records, because the process may be killed meanwhile."""
    if _Process.recorder is not None:
        _Process.recorder.announce_close()


def close() -> None:
    """Close the process's ring. Its records stay readable."""
    recorder, _Process.recorder, _Process.failure = _Process.recorder, None, None
    if recorder is not None:
        recorder.close()
