"""Settings: what may be set, where it is read from, and what is said when it cannot be used."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from swtrace.errors import SettingsError
from swtrace.settings import VARIABLES, Settings
from swtrace.trace.schema import DEFAULT_RECORDS

ENVIRONMENT = {
    "SWTRACE": "1",
    "SWTRACE_SERIES": "self_attn.o_proj, mlp.down_proj",
    "SWTRACE_PREFETCH_STEP": "3",
    "SWTRACE_GROUP": "world",
    "SWTRACE_WINDOWS": "static",
    "SWTRACE_CHECK": "1",
    "SWTRACE_DIR": "/run/rings",
    "SWTRACE_STRICT": "1",
    "SWTRACE_RUN_ID": "nightly-7",
    "SWTRACE_RING_RECORDS": "1024",
    "SWTRACE_RING_KEEP": "90",
    "SWTRACE_TIMEOUT": "2.5",
}
SETTINGS = Settings(
    enabled=True,
    series=("self_attn.o_proj", "mlp.down_proj"),
    prefetch_step=3,
    group="world",
    windows="static",
    check=True,
    directory=Path("/run/rings"),
    strict=True,
    run_id="nightly-7",
    ring_records=1024,
    ring_keep_s=90.0,
    timeout_s=2.5,
)


def test_every_field_has_a_variable() -> None:
    """No setting can be added without saying how it is read."""
    assert list(VARIABLES) == [field.name for field in fields(Settings)]


def test_environment_sets_every_field() -> None:
    """Each variable reaches its field."""
    assert Settings.from_environment(ENVIRONMENT) == SETTINGS


def test_empty_environment_gives_the_defaults() -> None:
    """Unset and empty variables leave the defaults, and off is the default."""
    assert Settings.from_environment({}) == Settings.from_environment(dict.fromkeys(ENVIRONMENT, "")) == Settings()
    assert not Settings().enabled


def test_overlay_wins_over_the_environment() -> None:
    """What ``--additional-config`` gives replaces the environment's value; the rest stays."""
    settings = Settings.from_environment(ENVIRONMENT).overlay({"prefetch_step": 2, "series": ["mlp.gate_up_proj"]})
    assert settings == replace(SETTINGS, prefetch_step=2, series=("mlp.gate_up_proj",))


def test_shape_round_trip() -> None:
    """What is written into vLLM's config survives JSON, and restores all that shapes the model."""
    shape = json.loads(json.dumps(SETTINGS.shape()))
    assert Settings().overlay(shape).shape() == SETTINGS.shape()


def test_shape_is_always_stated_in_full() -> None:
    """Even untouched defaults are in the shape, so that a release that changes one changes the cache key."""
    assert Settings().shape() == {
        "enabled": False,
        "series": ["self_attn.o_proj"],
        "prefetch_step": 1,
        "group": "auto",
        "windows": "auto",
        "check": False,
    }


def test_shape_leaves_out_what_only_concerns_the_recording() -> None:
    """A run id or a folder of rings must not make a model compile anew."""
    recording = replace(Settings(), directory=SETTINGS.directory, run_id="x", ring_records=1024, strict=True)
    assert recording.shape() == Settings().shape()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("SWTRACE", "yes"),
        ("SWTRACE_SERIES", "self_attn..o_proj"),
        ("SWTRACE_SERIES", "a,a"),
        ("SWTRACE_SERIES", "a;b"),
        ("SWTRACE_PREFETCH_STEP", "-1"),
        ("SWTRACE_PREFETCH_STEP", "one"),
        ("SWTRACE_GROUP", "pp"),
        ("SWTRACE_WINDOWS", "Static"),
        ("SWTRACE_CHECK", "on"),
        ("SWTRACE_DIR", "relative/folder"),
        ("SWTRACE_STRICT", "maybe"),
        ("SWTRACE_RUN_ID", "\x1b[31m"),
        ("SWTRACE_RUN_ID", "x" * 129),
        ("SWTRACE_RING_RECORDS", str(DEFAULT_RECORDS + 1)),
        ("SWTRACE_RING_RECORDS", "2"),
        ("SWTRACE_RING_KEEP", "inf"),
        ("SWTRACE_TIMEOUT", "0"),
        ("SWTRACE_TIMEOUT", "nan"),
    ],
)
def test_bad_variables_are_named(variable: str, value: str) -> None:
    """The error names the variable, the value, and what is allowed."""
    with pytest.raises(SettingsError) as caught:
        Settings.from_environment({variable: value})
    assert str(caught.value).startswith(f"{variable} is {value!r}: allowed is ")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"prefetch_step": True}, "additional_config['swtrace']['prefetch_step'] is true"),
        ({"prefetch_step": 1.5}, "additional_config['swtrace']['prefetch_step'] is 1.5"),
        ({"series": []}, "additional_config['swtrace']['series'] is []"),
        ({"series": [1]}, "additional_config['swtrace']['series'] is [1]"),
        ({"dir": 5}, "additional_config['swtrace']['dir'] is 5"),
        ({"prefetchstep": 1}, "unknown setting 'prefetchstep': known are enabled, series, prefetch_step"),
        ("on", "additional_config['swtrace'] is 'on': expected a mapping"),
    ],
)
def test_bad_config_values_are_named(values: Any, said: str) -> None:
    """The error names the key as the user wrote it, and its value."""
    with pytest.raises(SettingsError) as caught:
        Settings().overlay(values)
    assert said in str(caught.value)
