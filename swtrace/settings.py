"""The runtime's settings, from the environment and from vLLM's ``--additional-config``.

One table defines every setting: its variable and key, how its text is read, and what it must be. Nothing else parses
these variables. An invalid value raises a :class:`~swtrace.errors.SettingsError` that names the setting as the user
wrote it, its value, and what it must be.

Launchers, readers and ranks all load this module, so it uses only the standard library.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from swtrace.errors import SettingsError
from swtrace.share import ALL_LAYERS, Share
from swtrace.share import MUST_BE as SHARE_MUST_BE
from swtrace.trace.directory import default_directory
from swtrace.trace.schema import DEFAULT_RECORDS, MAX_RECORDS, MIN_RECORDS

CONFIG_KEY = "swtrace"
"""The key below which ``--additional-config`` carries these settings."""

GROUPS = ("auto", "tp", "dp", "world", "replicas")
WINDOWS = ("auto", "rolling", "static")
TRANSPORTS = ("auto", "broadcast", "pull")
MIN_TIMEOUT_S = 0.001
"""Sockets are polled in whole milliseconds, so a shorter timeout would be 0 and expire at once."""
MAX_TIMEOUT_S = 7 * 24 * 3600
"""A week. Sockets are polled with a 32-bit number of milliseconds, so timeouts above 24.8 days would fail."""


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings of the runtime, parsed and checked."""

    enabled: bool = False
    series: tuple[str, ...] = ("self_attn.o_proj",)
    """Paths of linears inside a decoder layer, one series each."""
    share: Share = ALL_LAYERS
    """Which layers of them are shared."""
    prefetch_step: int = 1
    group: str = "auto"
    windows: str = "auto"
    transport: str = "auto"
    """How layers get to the ranks that do not own them. Auto: by broadcasts between ranks of one torch world, which
    run in lockstep; otherwise each rank pulls them from shared memory."""
    check: bool = False
    """Debug mode: every weight carries a tag of its layer, and every reader checks it."""
    trace: bool = True
    """Record what the series do. If off, weights are shared, but no rank writes a ring."""
    directory: Path | None = None
    """Folder of the rings. None: the per-user folder on the local tmpfs."""
    strict: bool = False
    """Raise an error if something cannot be shared or traced. If off, warn and go on without it."""
    experimental: bool = False
    """Also share on devices on which sharing has not been tested yet."""
    run_id: str = ""
    """Empty: the ranks agree on one."""
    replicas: int = 1
    """How many vLLM servers or engines of this host, started separately, share with each other."""
    replica: int | None = None
    """Which of them this one is, counted from 0. None: not given."""
    ring_records: int = DEFAULT_RECORDS
    ring_keep_s: float = 3600.0
    """How long the ring of a dead rank is kept, in seconds."""
    time_every: int = 0
    """Time one in this many steps. 0: choose by the clock. All steps are counted."""
    plan: Path | None = None
    """The plan that the run follows, as `swtrace plan --save` wrote it: readers show its prediction beside what is
    measured."""
    timeout_s: float = 600.0
    """How long a rank waits for a peer, in seconds, before it fails."""
    probe: Path | None = None
    """File for a profile of the transfers between the ranks, measured when the first series is ready."""

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Read the ``SWTRACE_*`` variables; an empty one counts as unset.

        Raises:
            SettingsError: a variable has a value that cannot be used.
        """
        environ = os.environ if environ is None else environ
        return cls(**{each.field: from_variable(each.field, environ) for each in _SETTINGS})

    def overlay(self, values: object) -> Settings:
        """Return these settings, overridden by those of ``additional_config["swtrace"]``.

        Raises:
            SettingsError: ``values`` is not a mapping, has an unknown key, or a value that cannot be used.
        """
        if not isinstance(values, Mapping):
            raise SettingsError.of(f"additional_config[{CONFIG_KEY!r}]", values, "a mapping of settings")
        changes = {}
        for key, value in values.items():
            known = _BY_KEY.get(key)
            if known is None:
                raise SettingsError(
                    f"additional_config[{CONFIG_KEY!r}] has an unknown setting {key!r}: known are {', '.join(_BY_KEY)}"
                )
            changes[known.field] = known.read(value, f"additional_config[{CONFIG_KEY!r}][{key!r}]")
        return replace(self, **changes)

    def shape(self) -> dict[str, Any]:
        """Return the settings that affect the compiled model, as JSON values that :meth:`overlay` reads back.

        They belong in vLLM's compile cache key. With the others in it, such as the run id, every run would compile
        again.
        """
        return {each.key: each.write(getattr(self, each.field)) for each in _SETTINGS if each.shapes}

    def check_replicas(self) -> None:
        """Check that the replicas can find each other.

        Raises:
            SettingsError: this replica has no valid number, or they have no run id in common.
        """
        count, number = VARIABLES["replicas"], VARIABLES["replica"]
        if self.replica is not None and self.replica >= self.replicas:
            raise SettingsError.of(number, self.replica, f"below {count}, which is {self.replicas}")
        if self.replicas == 1:
            return
        if self.replica is None:
            raise SettingsError(f"{count} is {self.replicas}: number them with {number}, from 0 to {self.replicas - 1}")
        if not self.run_id:
            raise SettingsError(f"{count} is {self.replicas}: give them one {VARIABLES['run_id']}, to find each other")

    def ring_directory(self) -> Path:
        """Return the folder of rings: the one that was set, else this user's on tmpfs.

        Raises:
            SettingsError: another user made this user's folder.
        """
        return self.directory or default_directory()


def setting(field: str, value: object, name: str) -> Any:
    """Return the parsed value of one setting. Errors quote it as the value of ``name``, such as an option.

    Raises:
        SettingsError: it cannot be used.
    """
    return _BY_FIELD[field].read(value, name)


def from_variable(field: str, environ: Mapping[str, str] | None = None) -> Any:
    """Return one setting from its ``SWTRACE_*`` variable, or its default.

    Raises:
        SettingsError: it cannot be used.
    """
    variable = VARIABLES[field]
    text = (os.environ if environ is None else environ).get(variable, "").strip()
    return setting(field, text, variable) if text else _DEFAULTS[field]


def ring_directory(given: Path | None = None) -> Path:
    """Return the folder of rings for a reader: ``given`` with ``--dir``, else that of the ranks.

    Raises:
        SettingsError: the path cannot be resolved, or another user made this user's folder.
    """
    named = from_variable("directory") if given is None else setting("directory", str(given), "--dir")
    return Settings(directory=named).ring_directory()


def absolute(text: str) -> Path:
    """Return an absolute path, resolved alike in every part of swtrace.

    A leading ``~`` or ``~user`` means a home folder, also in env files, systemd units and compose files, where no shell
    replaces it. A relative path starts at the working directory.

    Raises:
        ValueError: the path is empty, or there is no such user.
    """
    expanded = os.path.expanduser(text)  # noqa: PTH111 (Path.expanduser raises RuntimeError instead)
    if not text or expanded.startswith("~"):
        raise ValueError
    return Path(expanded).absolute()


def unknown_variables(environ: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """Return a sentence for each ``SWTRACE_*`` variable that swtrace does not read; most are misspelt."""
    known = (*VARIABLES.values(), *OTHER_VARIABLES)
    guesses = {name.removeprefix(_PREFIX): name for name in known}
    guesses |= {word.upper(): each.variable for each in _SETTINGS for word in (each.field, each.key)}
    sentences = []
    for name in sorted(os.environ if environ is None else environ):
        if name.startswith(_PREFIX) and name not in known:
            from difflib import get_close_matches  # for the rare case only

            near = get_close_matches(name.removeprefix(_PREFIX).upper(), guesses, n=1)
            advice = f"did you mean {guesses[near[0]]}?" if near else f"the settings are {', '.join(known)}"
            sentences.append(f"{name} is not a setting and has no effect: {advice}")
    return tuple(sentences)


_PREFIX = "SWTRACE_"
_ON = frozenset({"1", "true", "yes", "on"})
_OFF = frozenset({"0", "false", "no", "off"})


def _read_flag(value: object) -> bool:
    if isinstance(value, bool):
        return value
    word = value.strip().lower() if isinstance(value, str) else str(value) if isinstance(value, int) else ""
    if word in _ON:
        return True
    if word in _OFF:
        return False
    raise ValueError


def _read_paths(value: object) -> tuple[str, ...]:
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list | tuple) or not all(isinstance(part, str) for part in parts):
        raise ValueError
    paths = tuple(part.strip() for part in parts)
    if not paths or len(set(paths)) != len(paths):
        raise ValueError
    if not all(name.isidentifier() or name.isdigit() for path in paths for name in path.split(".")):
        raise ValueError
    return paths


def _read_share(value: object) -> Share:
    if not isinstance(value, str):
        raise ValueError  # noqa: TRY004 (the caller words the error)
    return Share.parse(value)


def _read_text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError
    return value


def _read_path(value: object) -> Path:
    return absolute(_read_text(value))


def _read_run_id(value: object) -> str:
    text = _read_text(value)
    if len(text) > _RUN_ID_CHARACTERS or not text.isascii() or not text.isprintable():
        raise ValueError
    return text


_RUN_ID_CHARACTERS = 128
_MAX_REPLICAS = 256


def _one_of(*choices: str) -> Callable[[object], str]:
    def read(value: object) -> str:
        if not isinstance(value, str) or value not in choices:
            raise ValueError
        return value

    return read


def _whole_number(low: int, high: int, *, power_of_two: bool = False) -> Callable[[object], int]:
    def read(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise ValueError  # noqa: TRY004 (the caller words the error)
        number = int(value)
        if not low <= number <= high or (power_of_two and number & (number - 1)):
            raise ValueError
        return number

    return read


def _steps(value: object) -> int:
    return 0 if value == "auto" else _whole_number(1, 1 << 20)(value)


def _seconds(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError  # noqa: TRY004 (the caller words the error)
    number = float(value)
    if not 0 < number < float("inf"):
        raise ValueError
    return number


def _timeout(value: object) -> float:
    number = _seconds(value)
    if not MIN_TIMEOUT_S <= number <= MAX_TIMEOUT_S:
        raise ValueError
    return number


def _as_is(value: Any) -> Any:
    return value


@dataclass(frozen=True, slots=True)
class _Setting:
    """The definition of one setting."""

    field: str
    variable: str
    parse: Callable[[object], Any]
    must_be: str
    write: Callable[[Any], Any] = _as_is
    shapes: bool = False
    """Whether its value affects how a model is built or compiled."""

    @property
    def key(self) -> str:
        """The setting's name in ``--additional-config``: that of the variable in lower case, without the prefix."""
        return self.variable.removeprefix(_PREFIX).lower() if self.variable != "SWTRACE" else self.field

    def read(self, value: object, name: str) -> Any:
        """Return the parsed value, or raise an error that quotes it as the value of ``name``."""
        try:
            return self.parse(value)
        except (ValueError, OverflowError):  # OverflowError: a whole number too large for a float
            raise SettingsError.of(name, value, self.must_be) from None


_FLAG = "on (1, true, yes) or off (0, false, no)"


def _one_word(choices: tuple[str, ...]) -> str:
    return f"one of: {', '.join(choices)}"


_SETTINGS = (
    _Setting("enabled", "SWTRACE", _read_flag, _FLAG, shapes=True),
    _Setting(
        "series",
        "SWTRACE_SERIES",
        _read_paths,
        "a comma-separated list of different linear paths inside a decoder layer, such as self_attn.o_proj",
        write=list,
        shapes=True,
    ),
    _Setting("share", "SWTRACE_SHARE", _read_share, SHARE_MUST_BE, write=str, shapes=True),
    _Setting(
        "prefetch_step", "SWTRACE_PREFETCH_STEP", _whole_number(0, 4094), "a whole number from 0 to 4094", shapes=True
    ),
    _Setting("group", "SWTRACE_GROUP", _one_of(*GROUPS), _one_word(GROUPS), shapes=True),
    _Setting("windows", "SWTRACE_WINDOWS", _one_of(*WINDOWS), _one_word(WINDOWS), shapes=True),
    _Setting("transport", "SWTRACE_TRANSPORT", _one_of(*TRANSPORTS), _one_word(TRANSPORTS), shapes=True),
    _Setting("check", "SWTRACE_CHECK", _read_flag, _FLAG, shapes=True),
    _Setting("trace", "SWTRACE_TRACE", _read_flag, _FLAG),
    _Setting("directory", "SWTRACE_DIR", _read_path, "the path of a folder"),
    _Setting("strict", "SWTRACE_STRICT", _read_flag, _FLAG),
    _Setting("experimental", "SWTRACE_EXPERIMENTAL", _read_flag, _FLAG),
    _Setting("run_id", "SWTRACE_RUN_ID", _read_run_id, f"up to {_RUN_ID_CHARACTERS} printable ASCII characters"),
    _Setting(
        "replicas", "SWTRACE_REPLICAS", _whole_number(1, _MAX_REPLICAS), f"a whole number from 1 to {_MAX_REPLICAS}"
    ),
    _Setting(
        "replica",
        "SWTRACE_REPLICA",
        _whole_number(0, _MAX_REPLICAS - 1),
        f"a whole number from 0 to {_MAX_REPLICAS - 1}",
    ),
    _Setting(
        "ring_records",
        "SWTRACE_RING_RECORDS",
        _whole_number(MIN_RECORDS, MAX_RECORDS, power_of_two=True),
        f"a power of two from {MIN_RECORDS} to {MAX_RECORDS}",
    ),
    _Setting("ring_keep_s", "SWTRACE_RING_KEEP", _seconds, "a number of seconds above 0"),
    _Setting("time_every", "SWTRACE_TIME_EVERY", _steps, "auto, or a whole number from 1 to 1048576"),
    _Setting("plan", "SWTRACE_PLAN", _read_path, "the path of a plan, as `swtrace plan --save` writes it"),
    _Setting(
        "timeout_s",
        "SWTRACE_TIMEOUT",
        _timeout,
        f"a number of seconds from {MIN_TIMEOUT_S} to {MAX_TIMEOUT_S} (a week)",
    ),
    _Setting("probe", "SWTRACE_PROBE", _read_path, "the path of a file"),
)
_BY_KEY = {each.key: each for each in _SETTINGS}
_BY_FIELD = {each.field: each for each in _SETTINGS}
_DEFAULTS = {each.name: each.default for each in fields(Settings)}
VARIABLES = {each.field: each.variable for each in _SETTINGS}
"""The environment variable of each field, for messages that say which setting to change."""
OTHER_VARIABLES = (
    "SWTRACE_LISTEN",
    "SWTRACE_WEB_CONFIG",
    "SWTRACE_WATCH",
    "SWTRACE_WATCH_EVERY",
    "SWTRACE_CA",
    "SWTRACE_USER",
    "SWTRACE_PASSWORD_FILE",
    "SWTRACE_CERT",
    "SWTRACE_KEY",
    "SWTRACE_TRACE_SAMPLE",
    "SWTRACE_SLOW_STEP",
    "SWTRACE_TOP_CONFIG",
    "SWTRACE_SCREENSHOTS",
    "SWTRACE_DEMO",
)
"""Variables that the daemon, its clients, the terminal and docker-compose.yml read."""
