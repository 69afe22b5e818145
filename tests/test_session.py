"""An open session answers with arrays and figures, by selection."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import swtrace as public
from swtrace.errors import SettingsError, SwtraceError
from swtrace.session import Session
from tests.support.exported_run import STEPS
from tests.support.recorded_run import RecordedRun


def test_open_gives_arrays_by_selection(session: Session) -> None:
    """`swtrace.open` selects by series, rank, layer, phase and step, and returns NumPy arrays."""
    waits = session.waits(rank=1, layer=2, warmup=1)
    assert waits.rows == STEPS - 2
    assert waits["stall_ns"].dtype == np.int64
    assert set(waits["step"]) == set(range(1, STEPS - 1))
    assert session.stall_seconds(rank=1) == pytest.approx(session.step_table(rank=1)["stall_ns"].sum() * 1e-9)
    assert session.step_table(phase="prefill").rows == 0
    assert session.facts().series[0].steps == STEPS - 1
    assert session.lost == 0
    (verdict,) = session.verdicts().values()
    assert verdict.headline.sentence
    table = waits.to_arrow()
    assert table.num_rows == waits.rows
    for library in ("pandas", "polars"):
        try:
            frame = getattr(waits, f"to_{library}")()
        except SwtraceError as error:
            assert f"pip install {library}" in str(error)  # noqa: PT017 - either is right
        else:
            assert len(frame) == waits.rows


def test_open_takes_a_folder_of_rings_too(tmp_path: Path) -> None:
    """A live session reads new records whenever it is queried; a daemon's URL is refused with a hint."""
    run = RecordedRun(tmp_path)
    with public.open(tmp_path) as session:
        run.write(4)
        assert session.step_table(rank=0).rows == 4
        run.write(3)
        assert session.step_table(rank=0).rows == 7
        assert len(session.spans(steps=range(2, 3))) > 0
    run.close()
    with pytest.raises(SettingsError, match="/api/v1"):
        public.open("http://127.0.0.1:9465")
