"""Can the environment's ``SWTRACE_*`` variables be used as they are?"""

from __future__ import annotations

import os

from swtrace.cli.doctor.finding import Finding, State
from swtrace.errors import SettingsError
from swtrace.settings import VARIABLES, Settings


def settings() -> tuple[Finding, ...]:
    """Read every setting as a rank would."""
    try:
        Settings.from_environment()
    except SettingsError as error:
        return (Finding("settings", State.BROKEN, str(error), "set or unset the variable"),)
    names = sorted(variable for variable in VARIABLES.values() if os.environ.get(variable))
    return (Finding("settings", State.GOOD, ", ".join(names) if names else "no SWTRACE_* variable is set"),)
