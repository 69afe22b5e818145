"""The sentences of a plan."""

from __future__ import annotations

from dataclasses import replace

from swtrace.cli.plan.answer import answer, details, notes
from swtrace.ledger.planning.pareto import Budget
from tests.support.plans import HALF, NOTHING, REFUSED, WHOLE, plan, question, source


def test_the_answer_is_one_sentence_with_what_it_saves_and_costs() -> None:
    """The choice is stated with its settings, its saving, and its cost with the interval."""
    assert answer(plan(NOTHING, HALF, WHOLE)) == (
        "Share 1/2 of self_attn.o_proj with prefetch step 2 by pull: saves 2.62 GiB per rank, "
        "stalls for 0.8 % (0.2 to 1.9) of step time, and makes steps 0.8 % longer."
    )


def test_steps_that_take_as_long_are_not_said_to_be_longer() -> None:
    """A difference that rounds to nothing has no direction."""
    same = replace(HALF, step_ns=NOTHING.step_ns)
    assert answer(plan(NOTHING, same)).endswith("(0.2 to 1.9) of step time, and leaves step time unchanged.")


def test_the_answer_may_be_not_to_share() -> None:
    """If whatever saves memory costs too much, the answer says so, and the closest alternative follows."""
    made = plan(NOTHING, WHOLE)
    assert answer(made) == (
        "Share nothing of self_attn.o_proj: no settings that save memory are sure to keep stall of at most 2.0 % "
        "of step time."
    )
    assert details(made, "run.swrec")[0] == (
        "The closest: all layers with prefetch step 2 by pull saves 5.58 GiB per rank and stalls for 25.0 % "
        "(20.0 to 30.0) of step time. --max-stall 30% would allow it."
    )


def test_without_a_figure_the_answer_gives_the_reason() -> None:
    """If nothing could be predicted, the answer is why."""
    assert answer(plan(NOTHING, REFUSED)) == "No plan for self_attn.o_proj: it was never measured."
    assert answer(plan()).startswith("No plan for self_attn.o_proj: too few consecutive steps")


def test_nothing_within_the_memory_is_said() -> None:
    """A limit that no settings meet is named."""
    made = plan(NOTHING, HALF, budget=Budget(memory_bytes=1 << 20))
    assert answer(made) == "No plan for self_attn.o_proj: nothing that was tried is within 1.00 MiB per rank."


def test_what_was_measured_is_said() -> None:
    """The steps, their source and the settings that the run had are named."""
    assert details(plan(NOTHING, HALF), "run.swrec")[1] == (
        "Measured: 240 decode steps from run.swrec: 61 layers on 8 ranks, observed, not shared. A step took 60.0 ms."
    )


def test_several_linears_are_said_to_add_up() -> None:
    """Plans for two linears come with a warning that they share a transport, and what-ifs with one that they are."""
    several = (plan(HALF), plan(HALF, name="mlp.down_proj"))
    said = notes(source(other_runs=("run-2",), refused={"x": "why"}), several, replace(question(), bandwidth=12e9))
    assert said[0] == "Assumed, not measured: a transport of 11.2 GiB/s."
    assert "add up at least" in said[1]
    assert said[2] == "x was asked for and is not shared: why"
    assert "run-2" in said[3]
    assert notes(source(), several[:1], question()) == ()
