"""A finding says what to do, and survives JSON."""

from __future__ import annotations

import json
from dataclasses import replace

from swtrace.diagnosis.finding import Finding
from tests.support.verdicts import finding, judged


def test_a_finding_says_what_to_do_and_survives_json() -> None:
    """A finding carries its advice, also as JSON; without anything to do the advice is empty."""
    said = judged(compute=lambda rank, _step, _position: 1_000_000 + 400_000 * (rank == 2))

    assert finding(said, "straggler").advice.startswith("Check that rank's host")
    assert not said.headline.advice
    documents = json.loads(json.dumps([each.to_json() for each in said.findings]))
    assert tuple(map(Finding.from_json, documents)) == tuple(replace(each, repair=None) for each in said.findings)
    assert {each["level"] for each in documents} <= {"good", "note", "warning", "bad"}
