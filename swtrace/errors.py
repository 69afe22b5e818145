"""Errors of swtrace: one named class per kind of failure, all below :class:`SwtraceError`."""

from __future__ import annotations


class SwtraceError(Exception):
    """Base of every error that swtrace raises on purpose."""


class SettingsError(SwtraceError):
    """A setting has a value that cannot be used."""


class EmptySelectionError(SwtraceError):
    """Nothing that was recorded is what was asked for. The message says what there is instead."""


class SeamError(SwtraceError):
    """This vLLM does not have the places where swtrace takes hold of it."""


class RefusedError(SwtraceError):
    """Something asked for cannot be shared, and ``SWTRACE_STRICT=1`` asks for an error."""


class TraceError(SwtraceError):
    """Base of errors about rings and recordings."""


class RingFormatError(TraceError):
    """A file is not a ring, is damaged, or was written by an unknown version."""


class RingCreateError(TraceError):
    """A ring could not be made: its rank runs untraced, unless ``SWTRACE_STRICT=1`` asks for an error."""

    def __init__(self, reason: str, remedy: str = "") -> None:
        """Say what happened and, apart from it, which settings help: peers show the reason only."""
        super().__init__(f"{reason}. {remedy}" if remedy else reason)
        self.reason = reason


class RingFullError(TraceError):
    """A ring's series table or window table has no room left."""


class IntakeError(TraceError):
    """A ledger could not take in the records of some ranks; it took in those of all others."""

    def __init__(self, reasons: dict[tuple[str, int], Exception]) -> None:
        """Carry what was raised, by run id and rank."""
        super().__init__(
            "; ".join(f"rank {rank} of run {run_id}: {error}" for (run_id, rank), error in reasons.items())
        )
        self.reasons = reasons


class RecordingError(TraceError):
    """A recording could not be written any further, for lack of room or permission, or was read after it was closed.

    What it holds is sound.
    """


class RecordingFormatError(TraceError):
    """A file is not a recording, is damaged, or was written by an unknown version."""


class SeriesError(SwtraceError):
    """Base of errors of the series runtime. The message names series, layer and rank."""


class RegistrationError(SeriesError):
    """A series was asked for that cannot exist, or its layers do not fit together."""


class DisagreementError(SeriesError):
    """The ranks of a group do not describe the same series."""


class OrderError(SeriesError):
    """reach or wait was called in an order that the series cannot serve."""


class StaleWindowError(SeriesError):
    """A linear was about to read a window that does not hold its layer."""


class StampsUnavailable(SeriesError):  # noqa: N818 (of a device, not of a call: whoever asks goes on without)
    """A device cannot write down instants by itself. The message says why."""


class PeerLostError(SeriesError):
    """A broadcast failed, most often because a rank of the group died."""


class ListenError(SwtraceError):
    """The daemon cannot serve on the address that it was told to."""


class AnswerError(SwtraceError):
    """A daemon does not answer, or its answer is damaged."""
