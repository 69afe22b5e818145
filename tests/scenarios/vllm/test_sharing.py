"""Two ranks of real vLLM share a linear's weights, eager and compiled."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from swtrace.cli.vllm_ranks import RankFailedError, RankResult, Workload, run_ranks
from swtrace.profile import Profile
from tests.support.vllm import inspections
from tests.support.vllm.shared_runs import artifact_keys

if TYPE_CHECKING:
    from tests.support.vllm.shared_runs import Run

pytestmark = pytest.mark.vllm

MODES = ("eager", "compiled")


@pytest.fixture(params=MODES)
def run(request: pytest.FixtureRequest) -> Run:
    """Return the shared run, in both modes."""
    made: Run = request.getfixturevalue(request.param)
    return made


def test_tokens_are_identical(run: Run) -> None:
    """Every rank generates the tokens that it generates without sharing."""
    assert [rank.tokens for rank in run.ranks] == [rank.tokens for rank in run.control]


def test_a_profile_is_measured_at_the_start(eager: Run, folder: Path) -> None:
    """With SWTRACE_PROBE, the group of rank 0 writes how long transfers of this model's layers take."""
    profile = Profile.read(folder / "eager" / "profile.json")
    assert eager.layer_bytes in {each.bytes for each in profile.of("broadcast", 2, computing=True)}


def test_compiled_run_was_compiled(eager: Run, compiled: Run) -> None:
    """Only the compiled run made a graph, so the two modes really differ."""
    assert [rank.inspected["graphs"] for rank in eager.ranks] == [0, 0]
    assert min(rank.inspected["graphs"] for rank in compiled.ranks) > 0


def test_compiled_artifacts_are_kept_apart(compiled: Run, folder: Path) -> None:
    """Code compiled without a series has another key than code of the same model compiled with one."""
    assert compiled.ranks
    off, on = artifact_keys(folder / "compiled-control"), artifact_keys(folder / "compiled")
    assert off
    assert on
    assert not off & on


def test_additional_config_wins(eager: Run) -> None:
    """The worker's config has the effective settings: additional_config overrides the environment."""
    for rank in eager.ranks:
        assert rank.inspected["additional_config"] == {
            "swtrace": {
                "enabled": True,
                "series": ["self_attn.o_proj"],
                "share": "1/2",
                "prefetch_step": 2,
                "group": "auto",
                "windows": "auto",
                "transport": "auto",
                "check": False,
            },
            "swtrace_outcome": {"self_attn.o_proj": "world"},
        }


def test_one_wait_per_layer_step_and_rank(run: Run) -> None:
    """Each layer is waited for once in each step, although it is hooked in more than one place."""
    assert run.by_rank("swtrace_steps_total") == {0: run.steps, 1: run.steps}
    waits = len(run.layers) * run.steps
    assert run.by_rank("swtrace_waits_total") == {0: waits, 1: waits}


def test_waits_for_other_ranks_layers(run: Run) -> None:
    """Waits for layers that a rank owns, or that were there before the first step, are counted apart."""
    layers, k = len(run.layers), run.prefetch_step
    for rank in (0, 1):
        others = [position for position in range(layers) if position % 2 != rank]
        prefilled = sum(position < k for position in others)
        own_prefilled = k - prefilled
        waits = {
            outcome: run.by_rank("swtrace_waits_total", outcome=outcome)[rank]
            for outcome in ("on_time", "stalled", "own", "prefilled")
        }
        assert waits["on_time"] + waits["stalled"] == len(others) * run.steps - prefilled
        assert waits["prefilled"] == k
        assert waits["own"] == (layers - len(others)) * run.steps - own_prefilled


def test_broadcast_bytes(run: Run) -> None:
    """Every step broadcasts each layer's weight once."""
    moved = len(run.layers) * run.layer_bytes * run.steps
    assert run.by_rank("swtrace_transfer_bytes_total") == {0: moved, 1: moved}


def test_occupancy_sums_to_the_windows(run: Run) -> None:
    """Every window is in exactly one state, and their number is the one in the series' info."""
    windows = {rank.rank: rank.inspected["infos"][0].window_count for rank in run.ranks}
    assert run.by_rank("swtrace_window_occupancy") == windows
    for rank, held in run.by_rank("swtrace_series_bytes", kind="windows").items():
        assert held == windows[rank] * run.layer_bytes


def test_effective_prefetch_step(run: Run) -> None:
    """Broadcasts start as many layers ahead as requested."""
    k = run.prefetch_step
    assert run.by_rank("swtrace_prefetch_step", kind="configured") == {0: k, 1: k}
    assert run.by_rank("swtrace_prefetch_step", kind="effective") == {0: k, 1: k}


def test_memory_held(run: Run) -> None:
    """The linears hold the memory of the owned layers, the windows and the resident layers, and nothing more."""
    for rank in run.ranks:
        (info,) = rank.inspected["infos"]
        assert info.replicated_bytes == len(run.layers) * run.layer_bytes
        resident_bytes = (run.model.layers - len(run.layers)) * run.layer_bytes
        assert rank.inspected["held_bytes"] == info.owned_bytes + info.window_bytes + resident_bytes


def test_resident_layers_are_not_touched(run: Run) -> None:
    """Only the layers that are shared reach and wait; the others are as vLLM made them."""
    for rank in run.ranks:
        assert rank.inspected["touched"] == (run.layers, run.layers)


def test_calls_that_touch_the_weights_are_refused(eager: Run) -> None:
    """Reloading, updating, saving, discarding or sleeping is an error that names the call and what is shared."""
    assert [rank.inspected["allowed"] for rank in eager.ranks] == [[], []]


def test_phases(run: Run) -> None:
    """Each step has its phase: one prefill, the decodes, and what vLLM ran to compile."""
    decodes = len(run.ranks[0].tokens[0]) - 1
    count = "swtrace_step_duration_seconds_count"
    assert run.by_rank(count, phase="prefill") == {0: 1, 1: 1}
    assert run.by_rank(count, phase="decode") == {0: decodes, 1: decodes}
    assert run.by_rank(count) == {0: run.steps, 1: run.steps}


def test_nothing_is_lost(run: Run) -> None:
    """Every record that a rank wrote was delivered: one per layer and step, one per step, and the open ones."""
    assert sum(run.by_rank("swtrace_ring_lost_records_total").values()) == 0
    written = (len(run.layers) + 1) * run.steps + run.prefetch_step
    assert run.by_rank("swtrace_ring_records_total") == {0: written, 1: written}


def test_series_says_what_it_is(run: Run) -> None:
    """The series' info has ranks, model, transport and window policy, which is static for ``auto``."""
    infos = [labels for labels, _ in run.samples["swtrace_series_info"]]
    assert {info["rank"] for info in infos} == {"0", "1"}
    for info in infos:
        assert info["series"] == "self_attn.o_proj"
        assert (info["transport"], info["windows"], info["group_size"]) == ("gloo", "static", "2")
        assert (info["num_layers"], info["stack_layers"]) == (str(len(run.layers)), str(run.model.layers))
        assert Path(info["model"]).name in {"seven", "three"}


@pytest.mark.usefixtures("eager")
def test_the_choice_is_explained(folder: Path) -> None:
    """The first rank of a group logs in one line what is shared over which ranks, and why."""
    said = [line for rank in (0, 1) for line in (folder / f"eager/rank-{rank}.log").read_text().splitlines()]
    (line,) = [line for line in said if "swtrace shares" in line]
    assert line.endswith(
        "swtrace shares self_attn.o_proj (4 of 7 layers shared) over the world group (ranks 0, 1): "
        "the external launcher runs all of its ranks on the same prompts"
    )


def test_receivers_read_what_the_source_sends(
    workload: Workload, control: tuple[RankResult, ...], folder: Path
) -> None:
    """If the source's copy changes, the tokens of both ranks change alike, so the matmul really reads the window."""
    shared = replace(workload, plain_linears=(), inspect=inspections.poisoned)
    environment = {"SWTRACE": "1", "SWTRACE_DIR": str(folder / "rings-poisoned")}
    first, second = run_ranks(shared, folder, environment=environment)
    assert first.tokens == control[0].tokens
    assert first.inspected == second.inspected
    assert first.inspected[0] != first.tokens[0]


def test_a_failed_forward_does_no_harm(workload: Workload, control: tuple[RankResult, ...], folder: Path) -> None:
    """After a forward failed midway, at a different layer on each rank, the next request's tokens are right."""
    shared = replace(workload, plain_linears=(), inspect=inspections.interrupted)
    environment = {"SWTRACE": "1", "SWTRACE_DIR": str(folder / "rings-interrupted")}
    first, second = run_ranks(shared, folder, environment=environment, timeout_s=60)
    assert first.inspected == second.inspected
    assert first.inspected == {"died": True, "tokens": control[0].tokens[0], "aborted_steps": 1}


def test_survivors_name_who_died_and_where(workload: Workload, folder: Path) -> None:
    """If a rank is killed in a forward, the other ends within seconds; its error names series, layer and peer."""
    shared = replace(workload, plain_linears=(), inspect=inspections.deserted, tokens=1)
    environment = {"SWTRACE": "1", "SWTRACE_DIR": str(folder / "rings-deserted")}
    # The launcher gives the survivor some seconds to fail by itself, and says so where it did not.
    said = r"PeerLostError: series 'self_attn.o_proj', rank 0, layer \d: .*\(rank 1 died\)(.|\n)*vLLM rank 1: died"
    with pytest.raises(RankFailedError, match=said):
        run_ranks(shared, folder, environment=environment)
