"""The committed dashboards are what the code makes."""

from __future__ import annotations

from dashboards.source.__main__ import documents
from tests.support.grafana_json import FILES


def test_committed_json_is_what_the_code_makes() -> None:
    """``python -m dashboards.source`` writes exactly the committed JSON: nobody edits it by hand."""
    assert {path.name: path.read_text(encoding="utf-8") for path in FILES} == documents()
