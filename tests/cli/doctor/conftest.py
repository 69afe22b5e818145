"""The doctor's findings, as a script reads them."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from swtrace.cli.exit_codes import ExitCode
from tests.support.commands import Swtrace

Findings = dict[str, dict[str, str]]
Doctor = Callable[..., Findings]


@pytest.fixture
def doctor(swtrace: Swtrace) -> Doctor:
    """Return a function that runs the doctor and returns its findings by subject."""

    def look(*, broken: bool = False, **extra: str) -> Findings:
        result = swtrace("doctor", "--quick", "--json", extra=extra)
        assert result.stderr == ""
        assert result.returncode == (ExitCode.FAILED if broken else ExitCode.SUCCESS), result.stdout
        document = json.loads(result.stdout)
        assert document["broken"] is broken
        return {finding["subject"]: finding for finding in document["findings"]}

    return look
