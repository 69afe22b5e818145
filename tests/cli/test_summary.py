"""The summary of a run: what it selects from the ledger."""

from __future__ import annotations

import json

import pytest

from swtrace.cli.summary import (
    Summary,
)
from tests.support import fake_rank


def test_summary_states_what_the_ledger_states(summary: Summary) -> None:
    """Ratios, bytes and memory of a rank are those of its records."""
    (rank,) = summary.series[0].ranks
    assert (rank.steps, rank.recent_steps) == (10, 10)
    assert rank.step_seconds == pytest.approx(0.010)
    assert rank.stall_ratio == pytest.approx(0.2)
    assert rank.on_time_rate == 0
    assert (rank.held_bytes, rank.replicated_bytes, rank.saved_ratio) == (3 << 20, 4 << 20, 0.25)


def test_summary_accounts_for_every_record(summary: Summary) -> None:
    """Written is delivered, lost and pending together."""
    (ring,) = summary.rings
    assert ring.written == ring.delivered + ring.lost + ring.pending == 10 * (fake_rank.LAYERS + 1)


def test_summary_survives_json(summary: Summary) -> None:
    """A script that reads the JSON has everything that was summarised."""
    assert Summary.from_json(json.loads(json.dumps(summary.to_json(), allow_nan=False))) == summary
