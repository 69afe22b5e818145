"""Engines of one host that were started separately share linears by pull."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from swtrace.cli.vllm_ranks import RankFailedError, TinyLlama, fork_ranks
from tests.support.vllm.engines import Answers, Engine, answer_on_two_ranks, engines
from tests.support.vllm.pipeline import unique_rendezvous

SERIES = ("mlp.gate_up_proj", "mlp.down_proj")
LARGE = TinyLlama(layers=16, hidden=768)
LARGE_LAYER_BYTES = 3 * LARGE.hidden * 2 * LARGE.hidden * 2
"""Of both shared linears of a layer, in bfloat16."""
WINDOWS = 2

pytestmark = pytest.mark.vllm


def replica(number: int, rings: Path, **settings: str) -> dict[str, str]:
    """Return the environment of one of two replicas."""
    return {
        "SWTRACE": "1",
        "SWTRACE_DIR": str(rings),
        "SWTRACE_SERIES": ",".join(SERIES),
        "SWTRACE_RUN_ID": "engines",
        "SWTRACE_REPLICAS": "2",
        "SWTRACE_REPLICA": str(number),
        "SWTRACE_TIMEOUT": "120",
        **settings,
    }


@pytest.fixture(scope="module")
def rings() -> Iterator[Path]:
    """Return a folder in memory, where the layers lie as in a deployment."""
    from tempfile import TemporaryDirectory

    with TemporaryDirectory(prefix="swtrace-test-", dir="/dev/shm") as folder:
        yield Path(folder)


@dataclass(frozen=True, slots=True)
class Life:
    """Two replicas, one of which was killed and started again, and two engines that do not share."""

    control: set[Answers]
    plain_bytes: int
    """Memory of the two engines that do not share."""
    shared_bytes: int
    """Memory of the two replicas."""
    survivor: Engine
    successor: Engine
    left: list[str]
    """What was left in the folder besides rings."""


@pytest.fixture(scope="module")
def life(folder: Path, rings: Path) -> Life:
    """Run the engines."""
    here = folder / "engines"
    LARGE.save(here / "model")
    with engines(here / "plain") as started:
        plain = [started.start(here / "model", {}, SERIES) for _ in range(2)]
        for each in plain:
            each.wait_for_rounds(2)
        plain_bytes = sum(each.memory() for each in plain)
        control = plain[0].stop() | plain[1].stop()
    with engines(here / "shared") as started:
        survivor, victim = (started.start(here / "model", replica(number, rings)) for number in range(2))
        for each in (survivor, victim):
            each.wait_for_rounds(2)
        shared_bytes = survivor.memory() + victim.memory()
        os.kill(victim.pid, signal.SIGKILL)
        with pytest.raises(RankFailedError):
            victim.answers.result()
        survivor.wait_for_rounds(3)
        successor = started.start(here / "model", replica(1, rings))
        successor.wait_for_rounds(2)
        survivor.wait_for_rounds(2)
        survivor.stop()
        successor.stop()
    left = [path.name for path in rings.iterdir() if path.suffix != ".swt"]
    return Life(control, plain_bytes, shared_bytes, survivor, successor, left)


def test_answers_are_equal(life: Life) -> None:
    """A replica answers as an engine without swtrace: beside the other, alone, and after its restart."""
    assert len(life.control) == 1
    assert life.survivor.stop() == life.control
    assert life.successor.stop() == life.control


def test_the_survivor_says_who_died_and_is_back(life: Life) -> None:
    """The log of the survivor names series, rank and layers of the killed replica, and its return."""
    for series in SERIES:
        said = re.findall(rf"swtrace: series '{series}', rank 0: (rank 1 (?:died|is back).*)", life.survivor.log)
        assert said == [
            "rank 1 died; this rank goes on, because the 8 layers that rank 1 owns stay in shared memory",
            "rank 1 is back",
        ]


def test_memory_is_saved(life: Life) -> None:
    """Two replicas together hold each shared layer once, and their windows."""
    saved = life.plain_bytes - life.shared_bytes
    expected = (LARGE.layers - 2 * WINDOWS) * LARGE_LAYER_BYTES
    print(  # noqa: T201
        f"PSS of two replicas: {life.plain_bytes >> 20} MiB unshared, {life.shared_bytes >> 20} MiB shared; "
        f"saved {saved >> 20} MiB of {expected >> 20} MiB expected"
    )
    assert 0.9 * expected < saved < 1.1 * expected


def test_nothing_but_rings_is_left(life: Life) -> None:
    """The last replica removes the share folders when it ends."""
    assert life.left == []


@pytest.mark.slow
def test_tensor_parallel_replicas_share_split_linears(folder: Path, rings: Path) -> None:
    """Each rank shares its part of a linear with the rank of the same position in the other replica."""
    here = folder / "split"
    TinyLlama(layers=5, hidden=128).save(here / "model")
    environment = replica(0, rings, VLLM_HOST_IP="127.0.0.1")
    with unique_rendezvous(here) as rendezvous:
        control = fork_ranks(answer_on_two_ranks, (here / "model", rendezvous, SERIES), here, ranks=2)
    with unique_rendezvous(here) as rendezvous:
        work = (here / "model", rendezvous, ())
        ranks = fork_ranks(answer_on_two_ranks, work, here, ranks=4, environment=environment)
    assert [answers for answers, _ in ranks] == [control[0][0]] * 4
    for rank, (_, infos) in enumerate(ranks):
        assert [info.name for info in infos] == [*SERIES]
        assert {info.group_ranks for info in infos} == {(0, 2) if rank % 2 == 0 else (1, 3)}
        assert {info.rank_in_group for info in infos} == {rank // 2}


def test_replicas_of_different_checkpoints_are_refused(folder: Path, rings: Path) -> None:
    """Both end at their start, with an error that names a layer and both ranks."""
    from safetensors.torch import load_file, save_file  # type: ignore[import-not-found,unused-ignore]

    here = folder / "checkpoints"
    small = TinyLlama(layers=4, hidden=128)
    for name in ("one", "other"):
        small.save(here / name)
    file = here / "other" / "model.safetensors"
    weights = load_file(file)
    weights["model.layers.2.mlp.down_proj.weight"] *= 2
    save_file(weights, file, metadata={"format": "pt"})
    with engines(here / "logs") as started:
        pair = [
            started.start(here / name, replica(number, rings, SWTRACE_SERIES="mlp.down_proj"))
            for number, name in enumerate(("one", "other"))
        ]
        for number, each in enumerate(pair):
            with pytest.raises(RankFailedError) as caught:
                each.answers.result()
            where = f"DisagreementError: series 'mlp.down_proj', rank {number}, layer 2: "
            what = r"the ranks disagree on the weights that they loaded, so their checkpoints differ: rank 0 has \w+"
            assert re.search(where + what, str(caught.value))
