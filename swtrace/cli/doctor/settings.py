"""Can the environment's ``SWTRACE_*`` and ``OTEL_*`` variables be used as they are?"""

from __future__ import annotations

import os

from swtrace.cli.doctor.finding import Finding, State
from swtrace.daemon.settings import SpanSettings
from swtrace.errors import SettingsError
from swtrace.settings import OTHER_VARIABLES, VARIABLES, Settings, unknown_variables


def settings() -> tuple[Finding, ...]:
    """Read every setting as a rank and as a daemon would."""
    findings = []
    for read in (Settings.from_environment, SpanSettings.from_environment):
        try:
            read(os.environ)
        except SettingsError as error:
            findings.append(Finding("settings", State.BROKEN, str(error), "set or unset the variable"))
    findings += [
        Finding("settings", State.DOUBTFUL, sentence, "correct or unset it") for sentence in unknown_variables()
    ]
    names = sorted(name for name in (*VARIABLES.values(), *OTHER_VARIABLES) if os.environ.get(name, "").strip())
    if not findings:
        findings.append(Finding("settings", State.GOOD, ", ".join(names) if names else "no SWTRACE_* variable is set"))
    return tuple(findings)
