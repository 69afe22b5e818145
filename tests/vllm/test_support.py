"""The supported versions of vLLM, and what is reported missing in others."""

from __future__ import annotations

import pytest

from swtrace.vllm import support


@pytest.mark.parametrize(
    ("version", "supported"),
    [
        ("0.27.0", False),
        ("0.27.1", True),
        ("0.32.0+cpu", True),
        ("0.33.9rc1", True),
        ("0.34", False),
        ("0.34.0", False),
        ("1.0", False),
        ("dev", True),
    ],
)
def test_versions(version: str, supported: bool) -> None:  # noqa: FBT001 (pytest's way)
    """The range has both of its ends where its text says; a version without numbers passes."""
    assert support.RANGE == "vllm>=0.27.1,<0.34"
    assert support.supported(version) is supported


def test_missing_parts_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that does not exist and an attribute that is not there are reported; what is there is not."""
    parts = (
        ("json", "JSONEncoder.encode"),
        ("json", "JSONEncoder.no_such_method"),
        ("json", "no_such_class.encode"),
        ("no_such_module", "function"),
    )
    monkeypatch.setattr(support, "SEAM", parts)
    assert support.missing() == [
        "json.JSONEncoder.no_such_method",
        "json.no_such_class.encode",
        "no_such_module.function",
    ]
