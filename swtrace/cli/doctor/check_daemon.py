"""Check whether a daemon answers at the expected address, and if not, whether one could start there."""

from __future__ import annotations

import os

from swtrace import http_client
from swtrace.cli.doctor.diagnosis import Diagnosis, State
from swtrace.credentials import Credentials
from swtrace.daemon.daemon_settings import Listen, listen_address, web_config_file
from swtrace.errors import AccessError, AnswerError, SettingsError

_MOST_SAID = 60
_TIMEOUT_S = 2.0


def daemon() -> tuple[Diagnosis, ...]:
    """Check the address from ``SWTRACE_LISTEN``, or the default, and what should protect it."""
    try:
        listen = listen_address(os.environ)
    except SettingsError as error:
        return (Diagnosis("daemon", State.BROKEN, str(error), "correct or unset SWTRACE_LISTEN"),)
    try:
        tls = _serves_tls()
        credentials = Credentials.from_environment(os.environ)
    except SettingsError as error:
        return (Diagnosis("daemon", State.BROKEN, str(error), "correct the file or the setting, or unset it"),)
    problem = listen.problem()
    if problem is None:
        return (Diagnosis("daemon", State.ABSENT, f"none at {listen}; the port is free", "run swtrace daemon"),)
    reached = f"{'https' if tls or credentials.ca else 'http'}://{Listen(listen.host or '127.0.0.1', listen.port)}"
    try:
        said = http_client.get(reached, "/healthz", timeout_s=_TIMEOUT_S, credentials=credentials).strip()
        wrong = "" if said == b"ok" else f"answer: {said[:_MOST_SAID].decode(errors='replace')!r}"
    except AccessError as error:
        return (Diagnosis("daemon", State.DOUBTFUL, str(error), "set what a client of this daemon needs"),)
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
    return (Diagnosis("daemon", State.GOOD, f"answers at {reached}"),)


def _serves_tls() -> bool:
    """Return whether the file in ``SWTRACE_WEB_CONFIG`` asks for TLS.

    Raises:
        SettingsError: a daemon could not use the file.
    """
    file = web_config_file(os.environ)
    if file is None:
        return False
    from swtrace.daemon.web_config import WebConfig

    return WebConfig.read(file).tls is not None
