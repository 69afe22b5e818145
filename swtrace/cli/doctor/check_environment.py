"""Check what ranks would run with: Python, swtrace, torch, vLLM, and the environment variables.

Nothing heavy is imported here. Run as a program, this file imports vLLM and prints the attributes that the plugin
needs and vLLM lacks, as a JSON list. That is a separate process because importing vLLM is slow and may fail in ways
that no ``except`` catches.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import subprocess
import sys

import swtrace
from swtrace.cli.doctor.diagnosis import Diagnosis, State
from swtrace.daemon.metric_settings import MetricSettings
from swtrace.errors import SettingsError
from swtrace.settings import OTHER_VARIABLES, VARIABLES, Settings, unknown_variables
from swtrace.spans.environment import SpanSettings
from swtrace.vllm import support

OLDEST_TORCH = (2, 11)
_SEAM_TIMEOUT_S = 120


def versions(*, import_vllm: bool) -> tuple[Diagnosis, ...]:
    """Check every relevant package; with ``import_vllm``, also vLLM's internals, in a separate process."""
    vllm = _vllm()
    return (
        Diagnosis("python", State.GOOD, f"{platform.python_version()} at {sys.executable}"),
        Diagnosis("swtrace", State.GOOD, swtrace.__version__),
        _torch(),
        vllm,
        *((_plugin(), *_seam(import_vllm=import_vllm)) if vllm.state is not State.ABSENT else ()),
    )


def settings() -> tuple[Settings, tuple[Diagnosis, ...]]:
    """Read every setting as ranks and the daemon would; return the ranks', or the defaults if one is invalid."""
    found, problems = Settings(), []
    try:
        found = Settings.from_environment()
        found.check_replicas()
    except SettingsError as error:
        problems.append(str(error))
    for exported in (SpanSettings, MetricSettings):
        try:
            exported.from_environment(os.environ)
        except SettingsError as error:
            problems.append(str(error))
    diagnoses = [Diagnosis("settings", State.BROKEN, problem, "correct or unset it") for problem in problems]
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


def _torch() -> Diagnosis:
    version = _version_of("torch")
    if version is None:
        return Diagnosis(
            "torch",
            State.ABSENT,
            "not installed; the daemon and readers work without it, ranks do not",
            "pip install torch",
        )
    if _numbers(version) < OLDEST_TORCH:
        oldest = ".".join(map(str, OLDEST_TORCH))
        return Diagnosis("torch", State.DOUBTFUL, f"{version} is older than {oldest}", f"install torch>={oldest}")
    return Diagnosis("torch", State.GOOD, version)


def _vllm() -> Diagnosis:
    version = _version_of("vllm")
    if version is None:
        return Diagnosis("vllm", State.ABSENT, "not installed; the demo works without it", f"install {support.RANGE}")
    if not support.supported(version):
        return Diagnosis(
            "vllm",
            State.DOUBTFUL,
            f"{version} is not supported, so swtrace does nothing in it",
            f"install {support.RANGE}",
        )
    return Diagnosis("vllm", State.GOOD, f"{version} (supported: {support.RANGE})")


def _plugin() -> Diagnosis:
    names = {entry.name for entry in importlib.metadata.entry_points(group="vllm.general_plugins")}
    if "swtrace" not in names:
        return Diagnosis(
            "vllm plugin",
            State.BROKEN,
            "vLLM cannot find swtrace's entry point",
            "install swtrace in the environment of vLLM",
        )
    allowed = os.environ.get("VLLM_PLUGINS")
    if allowed is not None and "swtrace" not in [name.strip() for name in allowed.split(",")]:
        return Diagnosis(
            "vllm plugin", State.BROKEN, f"VLLM_PLUGINS={allowed!r} leaves swtrace out", "add swtrace to VLLM_PLUGINS"
        )
    return Diagnosis("vllm plugin", State.GOOD, "loaded by vLLM; does nothing without SWTRACE=1")


def _seam(*, import_vllm: bool) -> tuple[Diagnosis, ...]:
    if not import_vllm:
        return (Diagnosis("vllm seam", State.ABSENT, "not checked", "run without --quick"),)
    command = [sys.executable, "-P", "-m", "swtrace.cli.doctor.check_environment"]
    environment = {**os.environ, "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1", "SWTRACE": "0"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_SEAM_TIMEOUT_S, check=False, env=environment
        )
    except subprocess.TimeoutExpired:
        return (Diagnosis("vllm seam", State.DOUBTFUL, f"importing vLLM took more than {_SEAM_TIMEOUT_S} s"),)
    lines = done.stdout.splitlines()
    try:
        missing = json.loads(lines[-1])
    except (IndexError, ValueError):
        said = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        return (Diagnosis("vllm seam", State.BROKEN, f"vLLM cannot be imported: {said}", "fix the vLLM installation"),)
    if missing:
        return (
            Diagnosis(
                "vllm seam",
                State.BROKEN,
                f"this vLLM lacks {', '.join(missing)}",
                f"install {support.RANGE}",
            ),
        )
    return (Diagnosis("vllm seam", State.GOOD, "vLLM's offloader and worker fit the plugin"),)


def _version_of(module: str) -> str | None:
    """Return the version of the distribution that provides ``module``; several provide ``vllm``."""
    if importlib.util.find_spec(module) is None:
        return None
    for distribution in importlib.metadata.packages_distributions().get(module, [module]):
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "unknown"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version.split("+", maxsplit=1)[0])[:3])


def _print_seam() -> None:
    import vllm  # noqa: F401 (a failure to import is another finding)

    sys.stdout.write(json.dumps(support.missing()) + "\n")


if __name__ == "__main__":
    _print_seam()
