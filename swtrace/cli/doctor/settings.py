"""Can the environment's ``SWTRACE_*`` and ``OTEL_*`` variables be used as they are, and do ranks record under them?"""

from __future__ import annotations

import os
from contextlib import suppress

from swtrace.cli.doctor.finding import Finding, State
from swtrace.errors import SettingsError
from swtrace.settings import OTHER_VARIABLES, VARIABLES, Settings, from_variable, unknown_variables
from swtrace.spans.environment import SpanSettings


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
    with suppress(SettingsError):
        if not from_variable("trace"):
            findings.append(Finding("tracing", State.ABSENT, f"no rank writes a ring because {VARIABLES['trace']}=0"))
    return tuple(findings)
