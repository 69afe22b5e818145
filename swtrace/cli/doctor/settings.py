"""Can the environment's ``SWTRACE_*`` variables be used as they are, and do ranks record under them?"""

from __future__ import annotations

import os

from swtrace.cli.doctor.finding import Finding, State
from swtrace.errors import SettingsError
from swtrace.settings import VARIABLES, Settings


def settings() -> tuple[Finding, ...]:
    """Read every setting as a rank would."""
    try:
        settings = Settings.from_environment()
    except SettingsError as error:
        return (Finding("settings", State.BROKEN, str(error), "set or unset the variable"),)
    names = sorted(name for name in os.environ if name.partition("_")[0] == "SWTRACE" and os.environ[name])
    finding = Finding("settings", State.GOOD, ", ".join(names) if names else "no SWTRACE_* variable is set")
    if settings.trace:
        return (finding,)
    return finding, Finding("tracing", State.ABSENT, f"no rank writes a ring because {VARIABLES['trace']}=0")
