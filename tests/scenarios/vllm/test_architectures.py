"""docs/deployments.md counts vLLM's registered architectures as vLLM's registry has them."""

from __future__ import annotations

from pathlib import Path

import pytest

from swtrace.cli.vllm_ranks import fork_ranks
from tests.support.vllm import architectures

pytestmark = pytest.mark.vllm

DOCUMENT = Path(__file__).parents[3] / "docs" / "deployments.md"


@pytest.mark.slow
def test_counts_in_the_documentation(folder: Path) -> None:
    """The page lists each way to build layers, with the number of architectures that use it."""
    from vllm import __version__ as version  # type: ignore[import-not-found,unused-ignore]

    if not version.startswith("0.32."):
        pytest.skip(f"the documentation counts vLLM 0.32's architectures, this is {version}")
    (counted,) = fork_ranks(architectures.count, (), folder)
    rows = {way: f"| {way} | {number} |" for way, number in counted.items()}
    document = DOCUMENT.read_text()
    assert {way: row for way, row in rows.items() if row not in document} == {}
