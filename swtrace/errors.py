"""Errors of swtrace: one class per kind of failure, derived from :class:`SwtraceError` if users see it."""

from __future__ import annotations

import json
from typing import Self


class SwtraceError(Exception):
    """Base of every error that swtrace raises on purpose."""


class SettingsError(SwtraceError):
    """A setting or an option has an invalid value."""

    @classmethod
    def of(cls, name: str, value: object, must_be: str) -> Self:
        """Return the error about a value: the setting as the user wrote it, its value, and what it must be."""
        shown = repr(value) if isinstance(value, str) else json.dumps(value, default=repr)
        return cls(f"{name}={shown}: must be {must_be}")


class EmptySelectionError(SwtraceError):
    """Nothing that was recorded matches a selection. The message says what was recorded."""


class SeamError(SwtraceError):
    """This vLLM lacks the places that swtrace hooks into."""


class RefusedError(SwtraceError):
    """Something requested cannot be shared, and ``SWTRACE_STRICT=1`` makes this an error."""


class TraceError(SwtraceError):
    """Base of errors about rings and recordings."""


class RingFormatError(TraceError):
    """A file is not a ring, is damaged, or was written by an unknown version."""


class RingCreateError(TraceError):
    """A ring could not be created. Its rank runs untraced unless ``SWTRACE_STRICT=1``, which makes this an error."""

    def __init__(self, reason: str, remedy: str = "") -> None:
        """Keep the reason apart from the remedy, because peers show only the reason."""
        super().__init__(f"{reason}. {remedy}" if remedy else reason)
        self.reason = reason


class RingFullError(TraceError):
    """A ring's series table or window table is full."""


class IntakeError(TraceError):
    """A ledger could not ingest the records of some ranks. It ingested those of all others."""

    def __init__(self, reasons: dict[tuple[str, int], Exception]) -> None:
        """Store the errors by run id and rank."""
        super().__init__(
            "; ".join(f"rank {rank} of run {run_id}: {error}" for (run_id, rank), error in reasons.items())
        )
        self.reasons = reasons


class RecordingError(TraceError):
    """A recording could not be extended, for lack of room or permission, or was read after it was closed.

    Its existing content is intact.
    """


class RecordingFormatError(TraceError):
    """A file is not a recording, is damaged, or was written by an unknown version."""


class ProfileError(SwtraceError):
    """A profile of ``swtrace probe`` cannot be read or written."""


class SeriesError(SwtraceError):
    """Base of errors in the series runtime. The message names series, layer and rank."""


class RegistrationError(SeriesError):
    """A series cannot be built as requested, or its layers do not fit together."""


class DisagreementError(SeriesError):
    """The ranks of a group describe different series."""


class OrderError(SeriesError):
    """reach or wait was called in an order that the series does not support."""


class StaleWindowError(SeriesError):
    """A linear was about to read a window that does not hold its layer."""


class StampsUnavailable(SeriesError):  # noqa: N818 (of a device, not of a call: callers continue without)
    """A device cannot record instants itself. The message says why."""


class PeerLostError(SeriesError):
    """A broadcast failed, most often because a rank of the group died."""


class TransportError(RuntimeError):
    """A transport cannot complete an operation, usually because a peer left. The series turns it into its own errors.

    A RuntimeError, as in torch's own collectives.
    """


class ListenError(SwtraceError):
    """The daemon cannot serve on its address."""


class AnswerError(SwtraceError):
    """A daemon does not answer, or its answer is damaged."""


class AccessError(AnswerError):
    """A daemon refuses this client, or this client does not trust the daemon. The message says what to set."""
