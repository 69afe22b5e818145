"""Settings: valid values, their sources, and the errors for invalid ones."""

from __future__ import annotations

import json
import os
import pwd
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

import swtrace
from swtrace.errors import SeamError, SettingsError
from swtrace.settings import VARIABLES, Settings, ring_directory, unknown_variables
from swtrace.trace.directory import default_directory
from swtrace.trace.schema import DEFAULT_RECORDS
from swtrace.vllm.replacements import install

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
    "SWTRACE_REPLICAS": "4",
    "SWTRACE_REPLICA": "3",
    "SWTRACE_RING_RECORDS": "1024",
    "SWTRACE_RING_KEEP": "90",
    "SWTRACE_TIMEOUT": "2.5",
    "SWTRACE_PROBE": "/tmp/profile.json",
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
    replicas=4,
    replica=3,
    ring_records=1024,
    ring_keep_s=90.0,
    timeout_s=2.5,
    probe=Path("/tmp/profile.json"),
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
    """Values in ``--additional-config`` override those of the environment; the rest stays."""
    settings = Settings.from_environment(ENVIRONMENT).overlay({"prefetch_step": 2, "series": ["mlp.gate_up_proj"]})
    assert settings == replace(SETTINGS, prefetch_step=2, series=("mlp.gate_up_proj",))


def test_shape_round_trip() -> None:
    """The settings written into vLLM's config survive JSON and restore everything that shapes the model."""
    shape = json.loads(json.dumps(SETTINGS.shape()))
    assert Settings().overlay(shape).shape() == SETTINGS.shape()


def test_shape_is_always_stated_in_full() -> None:
    """Even untouched defaults are in the shape, so that a release that changes one changes the cache key."""
    assert Settings().shape() == {
        "enabled": False,
        "series": ["self_attn.o_proj"],
        "share": "all",
        "prefetch_step": 1,
        "group": "auto",
        "windows": "auto",
        "transport": "auto",
        "check": False,
    }


def test_shape_leaves_out_what_only_concerns_the_recording() -> None:
    """A run id or a folder of rings must not cause another compilation."""
    recording = replace(Settings(), directory=SETTINGS.directory, run_id="x", ring_records=1024, strict=True)
    assert recording.shape() == Settings().shape()


def test_replicas_that_can_find_each_other_are_accepted() -> None:
    """With a run id and a number each; a single one needs neither."""
    SETTINGS.check_replicas()
    Settings().check_replicas()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (replace(SETTINGS, replica=None), "SWTRACE_REPLICAS is 4: number them with SWTRACE_REPLICA, from 0 to 3"),
        (replace(SETTINGS, replica=4), "SWTRACE_REPLICA=4: must be below SWTRACE_REPLICAS, which is 4"),
        (replace(SETTINGS, run_id=""), "SWTRACE_REPLICAS is 4: give them one SWTRACE_RUN_ID, to find each other"),
        (Settings(replica=1), "SWTRACE_REPLICA=1: must be below SWTRACE_REPLICAS, which is 1"),
    ],
)
def test_replicas_that_cannot_find_each_other_are_refused(settings: Settings, said: str) -> None:
    """The error says which variable is missing."""
    with pytest.raises(SettingsError, match=f"^{re.escape(said)}$"):
        settings.check_replicas()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("SWTRACE", "2"),
        ("SWTRACE_SERIES", "self_attn..o_proj"),
        ("SWTRACE_SERIES", "a,a"),
        ("SWTRACE_SERIES", "a;b"),
        ("SWTRACE_PREFETCH_STEP", "-1"),
        ("SWTRACE_PREFETCH_STEP", "one"),
        ("SWTRACE_GROUP", "pp"),
        ("SWTRACE_WINDOWS", "Static"),
        ("SWTRACE_CHECK", "maybe"),
        ("SWTRACE_DIR", "~nobody-of-this-name/rings"),
        ("SWTRACE_STRICT", "-1"),
        ("SWTRACE_RUN_ID", "\x1b[31m"),
        ("SWTRACE_RUN_ID", "x" * 129),
        ("SWTRACE_RING_RECORDS", str(DEFAULT_RECORDS + 1)),
        ("SWTRACE_RING_RECORDS", "2"),
        ("SWTRACE_REPLICAS", "0"),
        ("SWTRACE_REPLICA", "-1"),
        ("SWTRACE_RING_KEEP", "inf"),
        ("SWTRACE_TIMEOUT", "0"),
        ("SWTRACE_TIMEOUT", "nan"),
        ("SWTRACE_TIMEOUT", "1e-9"),
        ("SWTRACE_TIMEOUT", "604801"),
        ("SWTRACE_TIMEOUT", "1e10"),
        ("SWTRACE_TIMEOUT", "1e300"),
    ],
)
def test_bad_variables_are_named(variable: str, value: str) -> None:
    """The error names the variable, the value, and what it must be."""
    with pytest.raises(SettingsError) as caught:
        Settings.from_environment({variable: value})
    assert str(caught.value).startswith(f"{variable}={value!r}: must be ")


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("SWTRACE_TIMEOUT", "0.001"),
        ("SWTRACE_TIMEOUT", "604800"),
        ("SWTRACE_RING_KEEP", "1e-300"),
        ("SWTRACE_RING_KEEP", "1e300"),
    ],
)
def test_durations_reach_as_far_as_they_work(variable: str, value: str) -> None:
    """A timeout may last up to a week; a ring may be kept for any time at all."""
    field = {name: field for field, name in VARIABLES.items()}[variable]
    assert getattr(Settings.from_environment({variable: value}), field) == float(value)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"prefetch_step": True}, "additional_config['swtrace']['prefetch_step']=true"),
        ({"prefetch_step": 1.5}, "additional_config['swtrace']['prefetch_step']=1.5"),
        ({"series": []}, "additional_config['swtrace']['series']=[]"),
        ({"series": [1]}, "additional_config['swtrace']['series']=[1]"),
        ({"dir": 5}, "additional_config['swtrace']['dir']=5"),
        ({"timeout": 1e10}, "['timeout']=10000000000.0: must be a number of seconds from 0.001 to 604800 (a week)"),
        ({"ring_keep": 10**400}, f"additional_config['swtrace']['ring_keep']={10**400}: must be "),
        ({"prefetchstep": 1}, "unknown setting 'prefetchstep': known are enabled, series, share, prefetch_step"),
        ("on", "additional_config['swtrace']='on': must be a mapping"),
    ],
)
def test_bad_config_values_are_named(values: Any, said: str) -> None:
    """The error names the key as the user wrote it, and its value."""
    with pytest.raises(SettingsError) as caught:
        Settings().overlay(values)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("text", "on"),
    [
        *((text, True) for text in ("1", "true", "True", "yes", "on", "ON", " 1", "1\r", "\ttrue\n")),
        *((text, False) for text in ("0", "false", "no", "off", "OFF", "", " ", "0\r")),
    ],
)
def test_flags_are_read_the_same_everywhere(text: str, *, on: bool) -> None:
    """Every flag takes the same words, with any surrounding white space."""
    variables = [VARIABLES[field] for field in ("enabled", "check", "strict", "experimental")]
    settings = Settings.from_environment(dict.fromkeys(variables, text))
    assert [settings.enabled, settings.check, settings.strict, settings.experimental] == [on] * 4


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("SWTRACE_PREFETCH", "SWTRACE_PREFETCH_STEP"),
        ("SWTRACE_SERIE", "SWTRACE_SERIES"),
        ("SWTRACE_DIRECTORY", "SWTRACE_DIR"),
        ("SWTRACE_ENABLED", "SWTRACE"),
        ("SWTRACE_SAMPLE", "SWTRACE_TRACE_SAMPLE"),
        ("SWTRACE_strict", "SWTRACE_STRICT"),
    ],
)
def test_a_misspelt_variable_is_named_with_the_one_that_was_meant(name: str, meant: str) -> None:
    """An unknown variable is reported, with the setting whose name is nearest."""
    (sentence,) = unknown_variables({name: "2", "PATH": "/bin", **ENVIRONMENT})
    assert sentence == f"{name} is not a setting and has no effect: did you mean {meant}?"


def test_an_unknown_variable_without_a_near_name_comes_with_all_names() -> None:
    """If no name is near, all of them are listed."""
    (sentence,) = unknown_variables({"SWTRACE_COLOUR": "red"})
    assert all(variable in sentence for variable in VARIABLES.values())


@pytest.mark.parametrize(
    ("text", "folder"),
    [
        ("/run/rings", "/run/rings"),
        ("~/rings", "/home/someone/rings"),
        ("~", "/home/someone"),
        ("~root/rings", f"{pwd.getpwnam('root').pw_dir}/rings"),
        ("below/rings", "/tmp/below/rings"),
        (" /run/rings\r", "/run/rings"),
        ("", str(default_directory())),
    ],
)
def test_the_folder_of_rings_is_resolved_in_one_place(monkeypatch: pytest.MonkeyPatch, text: str, folder: str) -> None:
    """Readers resolve the folder of rings as ranks do, from the environment or from an option."""
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("SWTRACE_DIR", text)
    monkeypatch.chdir("/tmp")
    assert ring_directory() == Settings.from_environment().ring_directory() == Path(folder)
    if text:
        assert ring_directory(Path(text.strip())) == Settings().overlay({"dir": text.strip()}).directory == Path(folder)


@pytest.mark.parametrize("folder", ["", "~nobody-of-this-name/rings"])
def test_a_folder_that_cannot_be_resolved_is_refused(folder: str) -> None:
    """An empty value and an unknown user's home are refused as folders, wherever they are given."""
    with pytest.raises(SettingsError, match="must be the path of a folder"):
        swtrace.open(folder)
    with pytest.raises(SettingsError, match="must be the path of a folder"):
        Settings().overlay({"dir": folder})


def test_workers_of_vllm_inherit_a_resolved_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A worker may have another working directory than the process that it was configured in."""

    def refuse() -> None:
        raise SeamError("no vLLM here")

    monkeypatch.setattr("swtrace.vllm.replacements._require_supported", refuse)
    monkeypatch.setenv("SWTRACE_DIR", "rings")
    monkeypatch.chdir(tmp_path)
    install()
    assert os.environ["SWTRACE_DIR"] == str(tmp_path / "rings")
