"""A user's settings: theme and keys, in ``$XDG_CONFIG_HOME/swtrace/top.toml``.

::

    theme = "swtrace-light"

    [keys]              # action = keys, as Textual names them
    pause = "space,P"
"""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

from swtrace.errors import SettingsError
from swtrace_tui.actions import ACTIONS
from swtrace_tui.palette import THEMES


@dataclass(frozen=True, slots=True)
class Configuration:
    """Theme and keys."""

    theme: str = THEMES[0]
    keys: dict[str, str] = field(default_factory=dict)


def default_path() -> Path:
    """Return the path of the configuration file."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "swtrace" / "top.toml"


def load(path: Path) -> Configuration:
    """Read the file; without one, return the defaults.

    Raises:
        SettingsError: the file cannot be read, or has an unknown or invalid setting.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):  # a service's HOME is often /dev/null
        return Configuration()
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path}: {error}") from error
    for name in document:
        if name not in {"theme", "keys"}:
            raise SettingsError(f"{path}: unknown setting {name!r}; must be one of: theme, [keys]")
    theme = document.get("theme", THEMES[0])
    if not isinstance(theme, str):
        raise SettingsError(f"{path}: theme={theme!r}: must be a name, for example {', '.join(THEMES)}")
    given = document.get("keys", {})
    known = {action.id for action in ACTIONS}
    if not isinstance(given, dict) or not all(isinstance(keys, str) for keys in given.values()):
        raise SettingsError(f"{path}: [keys]: must map names of actions to keys, as text")
    for name in given:
        if name not in known:
            raise SettingsError(f"{path}: unknown action {name!r}; must be one of: {', '.join(sorted(known))}")
    return Configuration(theme=theme, keys=dict(given))
