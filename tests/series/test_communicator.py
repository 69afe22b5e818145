"""Each series has a communicator of its own, and waits for its peers only as long as the settings say."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from torch.distributed import DistStoreError

from swtrace.errors import PeerLostError, SwtraceError
from swtrace.series import RankGroup, Series, post_processing
from swtrace.series.agreement import RunIdProposal
from swtrace.series.peer_loss import BEFORE_STEPS, Peers
from swtrace.settings import Settings
from tests.support.ranks import run_ranks
from tests.support.shared_blocks import RIGHT, Block, Case
from tests.support.stacks import Stack, true_weights


def two_series(_rank: int) -> list[bool]:
    """Two series in the same layers, with different shapes, steps and policies, used in turn."""
    group = RankGroup.world()
    first = Series("attention", group, 2, 8, prefetch_step=1)
    second = Series("mlp", group, 2, 8, prefetch_step=2, windows="rolling")
    stacks = [Stack(first, 2, true_weights(6, seed=1)), Stack(second, 2, true_weights(6, seed=2))]
    for series in (first, second):
        series.post_process()
    equal = []
    for _ in range(5):
        for position in range(6):
            for stack in stacks:
                stack.series.reach(2 + position)
            for stack in reversed(stacks):
                stack.series.wait(2 + position)
                equal.append(bool((stack.layers[position].weight == stack.weights[position]).all()))
    communicators = {id(series._transport._process_group) for series in (first, second)}  # type: ignore[union-attr]
    return [*equal, len(communicators) == 2]


def test_each_series_has_a_communicator_of_its_own() -> None:
    """Two series in one model do not disturb each other: their operations match within each communicator."""
    for equal in run_ranks(2, two_series):
        assert all(equal)


def one_never_comes(rank: int, dies: bool) -> str:  # noqa: FBT001 (passed by position)
    """Let rank 1 register, and end or go on without post-processing."""
    import time

    case = Case("lonely", Block, "static", start=False)
    if rank == 1:
        time.sleep(0 if dies else 4)
        return RIGHT
    begin = time.monotonic()
    try:
        case.series.post_process()
    except SwtraceError as error:
        return f"{type(error).__name__}: {error}; {'soon' if time.monotonic() - begin < 30 else 'late'}"
    return "not refused"


@pytest.mark.parametrize("dies", [False, True])
def test_a_peer_that_never_comes_is_named_within_the_timeout(dies: bool) -> None:  # noqa: FBT001 (pytest's way)
    """``SWTRACE_TIMEOUT`` also applies before the first broadcast, and the error names the missing rank."""
    told, _ = run_ranks(2, one_never_comes, dies, environment={"SWTRACE_TIMEOUT": "1"})
    assert told.startswith(
        f"PeerLostError: series 'lonely', rank 0, {BEFORE_STEPS}: rank 1 did not start post-processing within 1 s"
    )
    assert told.endswith("soon")


def test_ranks_that_cannot_connect_in_time_are_told_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A timeout too short to make a communicator in ends in an error with series, rank and setting, not in torch's."""

    def never(*_arguments: object, **_options: object) -> None:
        raise DistStoreError("wait timeout after 1ms, keys: /default_pg/0\nexception raised from elsewhere")

    monkeypatch.setattr(post_processing, "roll_call", lambda *_: None)
    monkeypatch.setattr(post_processing, "backend", lambda _: "gloo")
    monkeypatch.setattr(post_processing, "TorchTransport", never)
    constants: Any = SimpleNamespace(
        name="hasty", where="series 'hasty', rank 1", observed=False, group=RankGroup((0, 1), 1, object())
    )
    peers, proposal = Peers(constants.where, constants.group, (0, 1)), RunIdProposal("run", fixed=False)
    with pytest.raises(PeerLostError) as caught:
        post_processing.new_transport(constants, {}, peers, proposal, Settings(timeout_s=0.001))
    assert str(caught.value) == (
        f"series 'hasty', rank 1, {BEFORE_STEPS}: the ranks could not connect to each other: wait timeout after 1ms, "
        "keys: /default_pg/0; SWTRACE_TIMEOUT sets how long a rank waits for a peer"
    )
