"""Can the environment's ``SWTRACE_*`` and ``OTEL_*`` variables be used as they are, and do ranks record under them?"""

from __future__ import annotations

import os
from contextlib import suppress

from swtrace.cli.doctor.diagnosis import Diagnosis, State
from swtrace.daemon.settings import SpanSettings
from swtrace.errors import SettingsError
from swtrace.settings import OTHER_VARIABLES, VARIABLES, Settings, from_variable, unknown_variables


def settings() -> tuple[Diagnosis, ...]:
    """Read every setting as a rank and as a daemon would."""
    diagnoses = []
    for read in (Settings.from_environment, SpanSettings.from_environment):
        try:
            read(os.environ)
        except SettingsError as error:
            diagnoses.append(Diagnosis("settings", State.BROKEN, str(error), "set or unset the variable"))
    diagnoses += [
        Diagnosis("settings", State.DOUBTFUL, sentence, "correct or unset it") for sentence in unknown_variables()
    ]
    names = sorted(name for name in (*VARIABLES.values(), *OTHER_VARIABLES) if os.environ.get(name, "").strip())
    if not diagnoses:
        diagnoses.append(
            Diagnosis("settings", State.GOOD, ", ".join(names) if names else "no SWTRACE_* variable is set")
        )
    with suppress(SettingsError):
        if not from_variable("trace"):
            diagnoses.append(
                Diagnosis("tracing", State.ABSENT, f"no rank writes a ring because {VARIABLES['trace']}=0")
            )
    return tuple(diagnoses)
