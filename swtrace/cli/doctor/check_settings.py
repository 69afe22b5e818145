"""Can the environment's ``SWTRACE_*`` and ``OTEL_*`` variables be used as they are, and do ranks record under them?"""

from __future__ import annotations

import os

from swtrace.cli.doctor.diagnosis import Diagnosis, State
from swtrace.errors import SettingsError
from swtrace.settings import OTHER_VARIABLES, VARIABLES, Settings, unknown_variables
from swtrace.spans.environment import SpanSettings


def settings() -> tuple[Settings, tuple[Diagnosis, ...]]:
    """Read every setting as a rank and as a daemon would; return the ranks', or the defaults where one is unusable."""
    found, problems = Settings(), []
    try:
        found = Settings.from_environment()
    except SettingsError as error:
        problems.append(str(error))
    try:
        SpanSettings.from_environment(os.environ)
    except SettingsError as error:
        problems.append(str(error))
    diagnoses = [Diagnosis("settings", State.BROKEN, problem, "set or unset the variable") for problem in problems]
    diagnoses += [
        Diagnosis("settings", State.DOUBTFUL, sentence, "correct or unset it") for sentence in unknown_variables()
    ]
    names = sorted(name for name in (*VARIABLES.values(), *OTHER_VARIABLES) if os.environ.get(name, "").strip())
    if not diagnoses:
        diagnoses.append(
            Diagnosis("settings", State.GOOD, ", ".join(names) if names else "no SWTRACE_* variable is set")
        )
    if not found.trace:
        diagnoses.append(Diagnosis("tracing", State.ABSENT, f"no rank writes a ring because {VARIABLES['trace']}=0"))
    return found, tuple(diagnoses)
