"""The one ring of this process: which series write into it, where it lies, under which run id.

It is made by the first traced series, when the group has agreed on a run id, and closed in good order
when the process ends. A process that is killed leaves it readable. Where it cannot be made the process
runs untraced: that is said once, in its log, and to the other ranks.

Groups may be disjoint at first and meet in a later series, so a run id that was made up must be the
same in the whole torch world: whoever asks first writes its own into the world's store, and all others
find it there. Nobody waits for anybody, so a rank that shares nothing can ask, too.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable
from datetime import UTC, datetime
from multiprocessing.util import Finalize
from typing import TYPE_CHECKING

from swtrace.errors import RingCreateError, SettingsError
from swtrace.series.agreement import RunIdProposal
from swtrace.settings import Settings

if TYPE_CHECKING:
    from swtrace.trace.recorder import Recorder

logger = logging.getLogger(__name__)

RecorderSource = Callable[[str, int, Settings], "Recorder"]
"""Makes, or finds, the recorder of this process from (run id, global rank, settings of the series); raises
RingCreateError where it cannot."""


class _Process:
    """What this process records into."""

    recorder: Recorder | None = None
    failure: RingCreateError | None = None
    """Why there is none, though a series asked for it."""
    model: str = ""
    rings: int = 0
    """Made or tried so far. A later ring of this process belongs to another run, on every rank alike."""


def describe_model(model: str) -> None:
    """Say which model this process runs; shown to people. Before the first traced series is post-processed."""
    _Process.model = model


def propose_run_id(given: str = "") -> RunIdProposal:
    """Return the run id that this process writes under, was given to use, or would make up."""
    if _Process.recorder is not None:
        return RunIdProposal(_Process.recorder.identity.run_id, fixed=True)
    if given:
        return RunIdProposal(given, fixed=True)
    made_up = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
    return RunIdProposal(_first_in_the_world(made_up), fixed=False)


def _first_in_the_world(run_id: str) -> str:
    """Return the run id that the first rank of this torch world made up: this one, where it is alone or the first."""
    from torch import distributed as dist

    if not dist.is_available() or not dist.is_initialized():
        return run_id
    store = dist.group.WORLD.get_group_store()  # type: ignore[union-attr]
    answer: bytes = store.compare_set(f"swtrace/run-id/{_Process.rings}", "", run_id)
    return answer.decode()


def process_recorder(run_id: str, rank: int, settings: Settings | None = None) -> Recorder:
    """Return this process's recorder, making its ring the first time.

    Args:
        run_id: what all ranks agreed on.
        rank: this process's.
        settings: say where the ring lies, and its size; by default the environment's.

    Raises:
        RingCreateError: it cannot be made. This is tried, and said in the log, once.
    """
    if _Process.failure is not None:
        raise _Process.failure
    if _Process.recorder is None:
        settings = settings or Settings.from_environment()
        try:
            _Process.recorder = _make(run_id, rank, settings)
        except RingCreateError as failure:
            _Process.failure = failure
            if not settings.strict:  # else it ends in an error
                logger.warning("swtrace: rank %d runs untraced: %s", rank, failure)
            raise
        finally:
            _Process.rings += 1
        # Runs at the end of multiprocessing's children, too, which skip atexit.
        Finalize(None, close, exitpriority=0)
    return _Process.recorder


def existing_recorder() -> Recorder | None:
    """Return this process's recorder, if it has one."""
    return _Process.recorder


def _make(run_id: str, rank: int, settings: Settings) -> Recorder:
    from swtrace.trace.recorder import Recorder, identity_of_this_process

    identity = identity_of_this_process(run_id, rank, _Process.model)
    try:
        directory = settings.ring_directory()
    except (SettingsError, OSError) as error:
        raise RingCreateError(str(error)) from error
    return Recorder.create(directory, identity, records=settings.ring_records, keep_s=settings.ring_keep_s)


def exchange(recorder: Recorder | None) -> Recorder | None:
    """Put another ring in the place of this process's, and return that one: it stays open.

    With None the next traced series makes a ring as its settings say. For tests, that each want their own.
    """
    before, _Process.recorder, _Process.failure = _Process.recorder, recorder, None
    return before


def announce_close() -> None:
    """Mark the process's ring as closed before the last records are in it: the process may be killed meanwhile."""
    if _Process.recorder is not None:
        _Process.recorder.announce_close()


def close() -> None:
    """Close the process's ring in good order. Its records stay readable."""
    recorder, _Process.recorder, _Process.failure = _Process.recorder, None, None
    if recorder is not None:
        recorder.close()
