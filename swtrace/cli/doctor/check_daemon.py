"""Check whether a daemon answers at the expected address, and if not, whether one could start there."""

from __future__ import annotations

import os

from swtrace import http_client
from swtrace.cli.doctor.diagnosis import Diagnosis, State
from swtrace.daemon.daemon_settings import Listen, listen_address
from swtrace.errors import AnswerError, SettingsError

_MOST_SAID = 60
_TIMEOUT_S = 2.0


def daemon() -> tuple[Diagnosis, ...]:
    """Check the address from ``SWTRACE_LISTEN``, or the default."""
    try:
        listen = listen_address(os.environ)
    except SettingsError as error:
        return (Diagnosis("daemon", State.BROKEN, str(error), "correct or unset SWTRACE_LISTEN"),)
    problem = listen.problem()
    if problem is None:
        return (Diagnosis("daemon", State.ABSENT, f"none at {listen}; the port is free", "run swtrace daemon"),)
    reached = Listen(listen.host or "127.0.0.1", listen.port)
    try:
        said = http_client.get(str(reached), "/healthz", timeout_s=_TIMEOUT_S).strip()
        wrong = "" if said == b"ok" else f"answer: {said[:_MOST_SAID].decode(errors='replace')!r}"
    except AnswerError as error:
        wrong = str(error)
    if wrong:
        return (
            Diagnosis(
                "daemon",
                State.BROKEN,
                f"cannot serve on {listen} ({problem}), and /healthz there does not answer ok ({wrong})",
                "set SWTRACE_LISTEN to another address, or fix the daemon that is there",
            ),
        )
    return (Diagnosis("daemon", State.GOOD, f"answers at http://{reached}"),)
