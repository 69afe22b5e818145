"""The ownership check: it finds every window that does not hold its layer, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from swtrace.errors import DisagreementError, StaleWindowError
from swtrace.series import RankGroup, Series
from swtrace.series.ideal import IdealChannel, IdealOperation, IdealTransport
from swtrace.series.journal import Journal
from swtrace.series.layer import SeriesLayer
from swtrace.series.ownership import FORWARDED, CheckingJournal, OwnershipCheck
from swtrace.series.payload import ALIGNMENT
from tests.support.identity import matrix
from tests.support.quant_methods import (
    Float8,
    QuantisedLinear,
    Quantising,
    QuantMethod,
    Replacing,
    Transposing,
    resident,
)
from tests.support.ranks import run_ranks
from tests.support.stacks import WIDTH, ForwardDiedError, Stack, load, true_weights

LAYERS = 6
START = 1
WEIGHT_BYTES = WIDTH * WIDTH * 4
POLICIES = ["static", "rolling"]
ON, OFF = True, False


def checked_matrix(rank: int) -> tuple[list[str], int]:
    """Run the matrix of the identity tests; return what went wrong, and how often a window was checked."""
    looks = 0
    look: Any = OwnershipCheck._compare_tags

    def counted(self: Any, *arguments: Any) -> None:
        nonlocal looks
        looks += 1
        look(self, *arguments)

    OwnershipCheck._compare_tags = counted  # type: ignore[assignment, method-assign]
    return matrix(rank, (2, 5, 9))[1], looks


@pytest.mark.parametrize("world_size", [2, 3])
def test_no_alarm_where_nothing_is_wrong(world_size: int) -> None:
    """With the check on, results stay bit-identical, even after aborted forwards, and windows are checked."""
    for wrong, looks in run_ranks(world_size, checked_matrix, environment={"SWTRACE_CHECK": "1"}):
        assert wrong == []
        assert looks > 1_000


@pytest.mark.parametrize("windows", POLICIES)
@pytest.mark.parametrize("make", [QuantMethod, Replacing, Transposing, Quantising, Float8])
def test_quantised_sets_carry_their_tag(make: Callable[[], QuantMethod], windows: str) -> None:
    """Whatever post-processing does to the tensors, the tag follows them, on sources and in prefilled windows."""
    weights = true_weights(LAYERS)
    x = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(1))
    expected = [resident(make, weight)(x) for weight in weights]

    def program(transport: IdealTransport) -> None:
        series = Series(
            "q", transport.group, 2, 2 + LAYERS, prefetch_step=2, windows=windows, transport=transport, check=True
        )
        layers = [QuantisedLinear(make(), bias=True) for _ in weights]
        for position, (layer, weight) in enumerate(zip(layers, weights, strict=True)):
            series.register(2 + position, layer)
            load(layer.weight, weight)
            load(layer.bias, torch.zeros(WIDTH, dtype=torch.float64))
        series.post_process()
        for _ in range(4):
            with series.step():
                for position, layer in enumerate(layers):
                    series.reach(2 + position)
                    assert torch.equal(layer(x), expected[position])
        series.close()

    IdealChannel(2).run(program)


@pytest.mark.parametrize("windows", POLICIES)
def test_bytes_are_exact(windows: str) -> None:
    """A layer is as large as its weight. Held bytes, reported and real, are the weights and a tag per buffer."""

    def held(check: bool) -> list[tuple[int, ...]]:  # noqa: FBT001 (a case)
        def program(transport: IdealTransport) -> tuple[int, ...]:
            stack = make_stack(transport, windows=windows, check=check)
            info, statistics = stack.series.info, stack.series.statistics()
            assert (info.owned_bytes, info.window_bytes) == (statistics.owned_bytes, statistics.window_bytes)
            assert info.layer_bytes == WEIGHT_BYTES
            assert info.replicated_bytes == LAYERS * WEIGHT_BYTES
            storages = {layer.weight.untyped_storage().data_ptr(): layer.weight.untyped_storage().nbytes()
                        for layer in stack.layers}  # fmt: skip
            if windows == "static":
                assert sum(storages.values()) == info.owned_bytes + info.window_bytes
            return info.tag_bytes, info.owned_bytes, info.window_bytes // statistics.windows

        return IdealChannel(2).run(program)

    owned = LAYERS // 2
    assert held(check=False) == [(0, owned * WEIGHT_BYTES, WEIGHT_BYTES)] * 2
    tagged = WEIGHT_BYTES + ALIGNMENT
    assert held(check=True) == [(ALIGNMENT, owned * tagged, tagged)] * 2


def make_stack(
    transport: IdealTransport, *, windows: str = "static", prefetch_step: int = 1, check: bool = True
) -> Stack:
    """Return a post-processed stack over an ideal channel."""
    series = Series(
        "s", transport.group, START, START + LAYERS, prefetch_step=prefetch_step, windows=windows,
        transport=transport, check=check,
    )  # fmt: skip
    stack = Stack(series, START, true_weights(LAYERS))
    series.post_process()
    return stack


def laid_out(series: Series) -> dict[int, SeriesLayer]:
    """Return a post-processed series' layers, by absolute index."""
    circle: Any = series._circle
    layers: dict[int, SeriesLayer] = circle._layers
    return layers


# ---- faults: bytes that are not there yet, or no longer there -------------------------------------


def overwrite(series: Series, layer_idx: int) -> int:
    """Put the payload of a layer that this rank keeps into another one's window; return which layer it was.

    No cooperative transport can be brought to do that: it stands for a broadcast that nobody ordered.
    """
    window = laid_out(series)[layer_idx].window
    kept = next(layer for layer in laid_out(series).values() if layer.owned)
    assert window is not None
    assert kept.buffer is not None
    window.buffer.copy_(kept.buffer)
    return kept.layer_idx


class Sabotaged(nn.Module):
    """A linear whose window is overwritten once after its bytes have arrived, before or after the check runs."""

    def __init__(self, stack: Stack, position: int, *, before_look: bool) -> None:
        super().__init__()
        self._stack, self._position, self._before_look = stack, position, before_look
        self._linear = stack.layers[position]
        self.holds = -1
        """The layer whose weight was read."""

    def forward(self, x: Tensor) -> Tensor:
        """Compute with another layer's weight."""
        series, layer_idx = self._stack.series, self._stack.start_layer + self._position
        operation = laid_out(series)[layer_idx].operation
        if not self._before_look:
            series.wait(layer_idx)
        elif operation is not None:
            operation.wait()
        self.holds = overwrite(series, layer_idx)
        self._stack.layers[self._position] = self._linear
        output: Tensor = self._linear(x)
        return output


def sabotage(rank: int, windows: str, prefetch_step: int, *flags: bool) -> tuple[str, list[bool], int, int]:
    """Run steps, in the third of which a window of rank 1 is overwritten before its reader is done.

    Returns:
        What was raised, whether each step was right, the layer that was to be read, and the one that was.
    """
    check, before_look = flags
    series = Series(
        "faulty", RankGroup.world(), START, START + LAYERS, prefetch_step=prefetch_step, windows=windows, check=check
    )
    stack = Stack(series, START, true_weights(LAYERS))
    series.post_process()
    position = next(p for p in (2, 3) if not laid_out(series)[START + p].owned)
    fault = Sabotaged(stack, position, before_look=before_look)
    told, equal = "", []
    for step in range(5):
        if (rank, step) == (1, 2):
            stack.layers[position] = fault
        try:
            with series.step():
                equal.append(stack.forward(step))
        except StaleWindowError as error:
            told += f"in step {step}: {error}\n"
    series.close()
    return told, equal, START + position, fault.holds


@pytest.mark.parametrize("windows", POLICIES)
@pytest.mark.parametrize("prefetch_step", [0, 1, 3])
@pytest.mark.parametrize("before_look", [True, False])
def test_overwritten_windows_are_found(windows: str, prefetch_step: int, before_look: bool) -> None:  # noqa: FBT001
    """One overwritten window is one error within a step, naming layer, times and what was read; the series goes on."""
    (healthy, fine, *_), (told, equal, layer, holds) = run_ranks(2, sabotage, windows, prefetch_step, ON, before_look)
    assert (healthy, fine) == ("", [True] * 5)
    assert equal == [True, True, False, True, True]
    when = "when it was read" if before_look else "before it was freed"
    said = (
        f"series 'faulty', rank 1: the ownership check found, by the end of step {{step}}: "
        f"layer {layer}: its window held layer {holds} {when}, 1 time so far"
    )
    assert told in {f"in step {step}: {said.format(step=step)}\n" for step in (2, 3)}


@pytest.mark.parametrize("before_look", [True, False])
def test_without_the_check_the_fault_is_not_noticed(before_look: bool) -> None:  # noqa: FBT001 (pytest's way)
    """Without the check, the same fault gives a wrong result and no error."""
    _, (told, equal, *_) = run_ranks(2, sabotage, "static", 1, OFF, before_look)
    assert equal == [True, True, False, True, True]
    assert told == ""


def test_a_wait_that_does_not_wait_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """If a transport's wait returns before the bytes are there, every receiver's error says what it read instead."""

    def program(transport: IdealTransport) -> str:
        stack = make_stack(transport)
        wait = IdealOperation.wait
        monkeypatch.setattr(IdealOperation, "wait", lambda _: None)
        with pytest.raises(StaleWindowError) as caught, stack.series.step():
            stack.forward(0)
        transport.gather(None)
        monkeypatch.setattr(IdealOperation, "wait", wait)
        return str(caught.value)

    for rank, said in enumerate(IdealChannel(2).run(program)):
        assert said.startswith(f"series 's', rank {rank}: the ownership check found, by the end of step 0: ")
        # Position 0 was prefilled; of the others each rank receives those that it does not keep.
        received = [START + p for p in range(1, LAYERS) if (START + p) % 2 != rank]
        for layer in received:
            assert f"layer {layer}: its window held an unknown tag (0xa5a5a5a5a5a5a5a5) when it was read" in said
        assert said.count("when it was read") == len(received)


def test_many_findings_are_counted_not_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error names the first eight findings, and says how many more there are."""
    layers = 40

    def program(transport: IdealTransport) -> str:
        series = Series("m", transport.group, 0, layers, transport=transport, check=True)
        stack = Stack(series, 0, true_weights(layers))
        series.post_process()
        monkeypatch.setattr(IdealOperation, "wait", lambda _: None)
        with pytest.raises(StaleWindowError) as caught, series.step():
            stack.forward(0)
        return str(caught.value)

    for said in IdealChannel(2).run(program):
        assert said.count("its window held") == 8
        assert said.endswith(" more")


def test_ranks_must_agree_on_the_check() -> None:
    """A rank that checks and one that does not would move buffers of different sizes, so nothing is moved."""

    def program(transport: IdealTransport) -> None:
        with pytest.raises(
            DisagreementError, match="the ranks disagree on ownership check: rank 0 has False; rank 1 has True"
        ):
            make_stack(transport, check=transport.rank == 1)

    IdealChannel(2).run(program)


def test_the_environment_turns_the_check_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """``SWTRACE_CHECK=1`` turns the check on, unless the program turns it off."""
    monkeypatch.setenv("SWTRACE_CHECK", "1")

    def tag_bytes(check: bool | None) -> list[int]:  # noqa: FBT001 (a case)
        def program(transport: IdealTransport) -> int:
            series = Series("e", transport.group, 0, 2, prefetch_step=0, transport=transport, check=check)
            Stack(series, 0, true_weights(2))
            series.post_process()
            return series.info.tag_bytes

        return IdealChannel(2).run(program)

    assert tag_bytes(None) == [ALIGNMENT] * 2
    assert tag_bytes(False) == [0] * 2  # noqa: FBT003 (a case)


def switch_modes(_rank: int, windows: str) -> bool:
    """Place series in inference mode and outside it, and run each in both."""
    equal = []
    for number, placed in enumerate((True, False)):
        series = Series(f"s{number}", RankGroup.world(), START, START + LAYERS, windows=windows, check=True)
        stack = Stack(series, START, true_weights(LAYERS))
        with torch.inference_mode(mode=placed):
            series.post_process()
        for step in range(3):
            equal.append(stack.forward(step))  # in inference mode
            with torch.inference_mode(mode=False):
                for layer_idx in range(START, START + LAYERS):
                    series.reach(layer_idx)
                    series.wait(layer_idx)
        series.close()
    return all(equal)


@pytest.mark.parametrize("windows", POLICIES)
def test_inference_mode_may_come_and_go(windows: str) -> None:
    """The series may be placed in inference mode or outside, and run in either."""
    assert run_ranks(2, switch_modes, windows) == [True, True]


def test_a_step_that_died_keeps_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """If a forward fails and a window was stale, the forward's own error is raised, with a note about the other."""

    def program(transport: IdealTransport) -> None:
        stack = make_stack(transport)
        monkeypatch.setattr(IdealOperation, "wait", lambda _: None)
        with pytest.raises(ForwardDiedError) as caught, stack.series.step():
            stack.forward(0, stop_at=4)
        (note,) = caught.value.__notes__
        assert note.startswith("Ending the step then failed: series 's', rank")
        assert "the ownership check found" in note

    IdealChannel(2).run(program)


def test_closing_reports_what_the_last_step_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Close reports the errors of a last step without a marked end, and still closes the series."""

    def program(transport: IdealTransport) -> None:
        stack = make_stack(transport)
        wait = IdealOperation.wait
        monkeypatch.setattr(IdealOperation, "wait", lambda _: None)
        stack.forward(0)
        transport.gather(None)
        monkeypatch.setattr(IdealOperation, "wait", wait)
        with pytest.raises(StaleWindowError, match="by the end of step 0"):
            stack.series.close()
        stack.series.close()

    IdealChannel(2).run(program)


def compiled_steps(rank: int) -> tuple[list[bool], str, str]:
    """Run a compiled forward whose waits are opaque operators; overwrite a window of rank 1 behind its wait."""
    from swtrace.series.operations import reach, wait

    series = Series("compiled", RankGroup.world(), START, START + LAYERS, hook_forward=False, check=True)
    weights = true_weights(LAYERS)
    stack = Stack(series, START, weights)
    series.post_process()
    name = series.number

    def forward(x: Tensor) -> Tensor:
        for layer_idx, layer in enumerate(stack.layers, START):
            reach(x, name, layer_idx)
            x = torch.tanh(x) + 1
            wait(x, name, layer_idx)
            x = nn.functional.linear(x, layer.weight)
        return x

    compiled = torch.compile(forward, fullgraph=True, backend="aot_eager")
    expected = torch.ones(2, WIDTH)
    for weight in weights:
        expected = nn.functional.linear(torch.tanh(expected) + 1, weight)
    victim = next(START + p for p in (2, 3) if not laid_out(series)[START + p].owned)
    wait_for = series.wait
    told, equal, holds = "", [], -1
    for step in range(5):
        if (rank, step) == (1, 3):

            def wait_and_overwrite(layer_idx: int) -> None:
                nonlocal holds
                wait_for(layer_idx)
                if layer_idx == victim and holds < 0:
                    holds = overwrite(series, layer_idx)

            series.wait = wait_and_overwrite  # type: ignore[method-assign]
        try:
            with torch.inference_mode(), series.step():
                equal.append(torch.allclose(compiled(torch.ones(2, WIDTH)), expected, rtol=1e-3))
        except StaleWindowError as error:
            told += str(error)
    series.close()
    return equal, told, f"layer {victim}: its window held layer {holds} before it was freed, 1 time so far"


def test_compiled_forwards_are_checked() -> None:
    """Windows are also checked in a compiled forward."""
    (equal, told, _), (wrong, found, expected) = run_ranks(2, compiled_steps)
    assert (equal, told) == ([True] * 5, "")
    assert wrong == [True, True, True, False, True]
    assert found.endswith(expected)


def test_the_check_passes_everything_on_to_the_wrapped_journal() -> None:
    """The check handles or passes on every call of a journal."""
    calls = {name for name in vars(Journal) if not name.startswith("_")}
    assert len(calls) > 10
    assert set(FORWARDED) == calls - set(vars(CheckingJournal))
