"""What docs/deployments.md says of vLLM's registered architectures is what its registry says."""

from __future__ import annotations

from pathlib import Path

import pytest

from swtrace.cli.vllm_ranks import fork_ranks
from tests.support.vllm import architectures

pytestmark = pytest.mark.vllm

DOCUMENT = Path(__file__).parents[2] / "docs" / "deployments.md"


@pytest.mark.slow
def test_counts_in_the_documentation(folder: Path) -> None:
    """Each way to build layers stands there with the number of architectures that take it."""
    from vllm import __version__ as version  # type: ignore[import-not-found,unused-ignore]

    if not version.startswith("0.32."):
        pytest.skip(f"the documentation counts vLLM 0.32's architectures, this is {version}")
    (counted,) = fork_ranks(architectures.count, (), folder)
    rows = {way: f"| {way} | {number} |" for way, number in counted.items()}
    document = DOCUMENT.read_text()
    assert {way: row for way, row in rows.items() if row not in document} == {}
