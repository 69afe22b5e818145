"""Baselines: what tests measured last time, in one JSON file that belongs under version control."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from swtrace.errors import SettingsError
from swtrace.testing.limits import Baseline, Measurement

_FORMAT = 1


def load(path: Path) -> dict[str, Baseline]:
    """Return the baselines by test; none if there is no file.

    Raises:
        SettingsError: the file holds something else.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    try:
        document = json.loads(text)
        if document["swtrace_baseline"] != _FORMAT:
            raise SettingsError(f"{path}: baseline format {document['swtrace_baseline']}, this swtrace has {_FORMAT}")
        return {test: decode(places) for test, places in document["tests"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SettingsError(f"{path} is no baseline of swtrace: {error!r}") from error


def save(path: Path, fresh: dict[str, Baseline]) -> None:
    """Write baselines; those of tests that did not run stay."""
    tests = {**load(path), **fresh}
    document = {"swtrace_baseline": _FORMAT, "tests": {test: encode(tests[test]) for test in sorted(tests)}}
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def encode(baseline: Baseline) -> dict[str, Any]:
    """Return plain values."""
    return {place: asdict(measurement) for place, measurement in sorted(baseline.items())}


def decode(places: dict[str, Any]) -> Baseline:
    """Return what :func:`encode` was given."""
    return {place: Measurement(**values) for place, values in places.items()}
