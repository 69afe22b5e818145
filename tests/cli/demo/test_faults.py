"""Faults on demand: what is refused, and what the records of short runs show of each kind."""

from __future__ import annotations

import json
import re
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest

import swtrace
from swtrace.cli.demo.faults import KINDS, parse
from swtrace.cli.demo.scenarios import Dials, Transport
from swtrace.cli.exit_codes import ExitCode
from swtrace.errors import SettingsError
from swtrace.ledger.facts import StepFacts
from swtrace.trace.directory import memory_folder
from tests.support.commands import StartSwtrace, clean_environment, help_text, run_swtrace
from tests.support.patience import eventually, patience
from tests.support.processes import command_line, descendants, runs

DEMO = ("--layers", "8", "--mib", "0.125", "--compute-ms", "2", "--prefetch-step", "1")
DOCUMENTATION = Path(__file__).resolve().parents[3] / "docs" / "diagnosis.md"
LATE_MS = 15
"""Long beside what a busy machine keeps a rank waiting for a core."""


# -- what may be asked for ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("slow", "--fault='slow': must be KIND or KIND:key=value,... with a KIND of: straggler, "),
        ("straggler:ms", "--fault straggler:ms='': must be a number from 0 to 60000"),
        ("straggler:ms=fast", "--fault straggler:ms='fast': must be a number from 0 to 60000"),
        ("straggler:every=0", "--fault straggler:every='0': must be a whole number, at least 1"),
        ("straggler:rank=-1", "--fault straggler:rank='-1': must be a number, or several such as 1+3"),
        ("straggler:rank=1+", "--fault straggler:rank='1+': must be a number, or several such as 1+3"),
        ("straggler:where=entry", "--fault='straggler:where=entry': must be straggler:key=value,... with the keys: "),
        ("entry:ms=1,", "--fault='entry:ms=1,': must be entry:key=value,... with the keys: "),
        ("hang:where=here", "--fault hang:where='here': must be one of: compute, entry, collective"),
        ("hang:after=-1", "--fault hang:after='-1': must be a number, at least 0"),
        ("slow-link:ms=0", "--fault slow-link:ms='0': must be a number from 0.1 to 60000"),
        ("steal:processes=1e3", "--fault steal:processes='1e3': must be a whole number from 1 to 64"),
    ],
)
def test_a_bad_fault_is_refused(text: str, message: str) -> None:
    """The error quotes what was typed, and says what it must be."""
    with pytest.raises(SettingsError, match=f"^{re.escape(message)}"):
        parse(text)


@pytest.mark.parametrize(
    ("fault", "dials", "must_be"),
    [
        ("entry:rank=0+2", Dials(), "of the ranks 0-1, with --ranks 2"),
        ("straggler:layer=60", Dials(), "of the layers 0-59, with --layers 60"),
        ("hang", Dials(steps=9), "limited by for=SECONDS"),
        ("hang:for=1,where=collective", Dials(steps=9), "in compute or entry"),
        ("hang:where=collective", Dials(transport=Transport.PULL), "in compute or entry"),
        ("slow-link", Dials(transport=Transport.PULL), "of another kind"),
        ("slow-source", Dials(share="none"), "of another kind"),
    ],
)
def test_a_fault_that_the_run_cannot_have_is_refused(fault: str, dials: Dials, must_be: str) -> None:
    """The error says with which other dial it does not go."""
    with pytest.raises(SettingsError, match=f"^--fault={fault!r}: must be {must_be}".replace("+", r"\+")):
        replace(dials, faults=(fault,)).check()


def test_the_default_rank_is_the_last() -> None:
    """Of the run that has the fault, not of the scenario."""
    assert [fault.ranks for fault in Dials(ranks=5, faults=("kill", "kill:rank=3+1")).injected] == [(4,), (1, 3)]


def test_every_kind_is_documented() -> None:
    """With each of its own keys, in its row of the table."""
    _, _, rows = DOCUMENTATION.read_text().partition("## Faults")[2].partition("|---|")
    documented = re.findall(r"^\| ([a-z-]+) \| (.*?) \| ", rows, re.MULTILINE)
    common = {"rank", "after", "for"}
    assert {kind: set(re.findall(r"`([a-z]+)", keys)) for kind, keys in documented} == {
        kind: fault.keys().keys() - common for kind, fault in KINDS.items()
    }


@pytest.mark.parametrize("kind", KINDS)
def test_the_help_says_what_each_kind_and_key_does(kind: str) -> None:
    """No kind can be asked for that ``--help`` leaves out, and none has a key that it leaves out."""
    text = help_text("demo")
    assert f"• {kind} " in text
    about = text.partition("All faults")[2]
    assert not [key for key in KINDS[kind].keys() if not re.search(rf"\b{key}\b", about)]  # noqa: SIM118 (no mapping)


# -- what the records show ---------------------------------------------------------------------


class Run(NamedTuple):
    """A demo that ran to its end."""

    result: dict[str, Any]
    steps: tuple[StepFacts, ...]
    """All but the first."""

    def typical(self, value: Callable[[StepFacts], npt.NDArray[np.int64]]) -> Any:
        """Return the median over steps of a value, in ms."""
        return np.median([value(step) for step in self.steps], axis=0) / 1e6


RunFaulty = Callable[..., Run]


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> RunFaulty:
    """Return a function that runs the demo with faults, and reads its rings."""

    @cache
    def run(*arguments: str, code: ExitCode = ExitCode.SUCCESS) -> Run:
        rings = tmp_path_factory.mktemp("faulty") / "rings"
        done = run_swtrace(("demo", "--json", "--no-daemon", *DEMO, *arguments), clean_environment(rings))
        assert done.returncode == code, done.stderr
        with swtrace.open(rings) as session:
            return Run(json.loads(done.stdout), tuple(session.steps())[1:])

    return run


def faults(*texts: str) -> Iterable[str]:
    """Return the arguments that ask for faults."""
    return (word for text in texts for word in ("--fault", text))


def computes(step: StepFacts) -> npt.NDArray[np.int64]:
    """Return ``[rank, layer]``: from the end of a layer's wait to the next layer's, or to the end of the step."""
    ends = np.concatenate([step.wait_begin_ns[:, 1:], step.end_ns[:, None]], axis=1)
    return ends - step.wait_end_ns


def transfers(step: StepFacts) -> npt.NDArray[np.int64]:
    """Return ``[receiver, source]``: the mean transfer of a step."""
    ranks = range(len(step.ranks))
    pairs = [[step.receiver[to] & (step.source == source) for source in ranks] for to in ranks]
    return np.array([[step.transfer_ns[to][pair].sum() // max(1, pair.sum()) for pair in pairs[to]] for to in ranks])


STRAGGLING = (
    "--steps",
    "30",
    *faults(f"straggler:rank=1,layer=3,every=3,ms={LATE_MS}", f"entry:rank=0,every=5,ms={LATE_MS}"),
)


def test_a_straggler_computes_longer_in_its_layer_and_steps(faulty: RunFaulty) -> None:
    """The excess is on that rank, in that layer, in each third step, and nowhere else."""
    run = faulty(*STRAGGLING)
    for due in (False, True):
        typical = Run(run.result, tuple(step for step in run.steps if (step.step % 3 == 2) is due)).typical(computes)
        slow = [(int(rank), int(layer)) for rank, layer in np.argwhere(typical > LATE_MS)]
        assert slow == ([(1, 3)] if due else [])


def test_a_late_rank_enters_its_steps_late(faulty: RunFaulty) -> None:
    """In each fifth step, it enters later beside the other rank than in the other steps."""
    run = faulty(*STRAGGLING)
    lags_ns = {
        due: [int(step.begin_ns[0] - step.begin_ns[1]) for step in run.steps if (step.step % 5 == 4) is due]
        for due in (False, True)
    }
    assert np.median(lags_ns[True]) - np.median(lags_ns[False]) > LATE_MS * 500_000


def test_the_result_says_what_began_when(faulty: RunFaulty) -> None:
    """Each fault is listed once per rank, as it was asked for, with the time of its begin."""
    run = faulty(*STRAGGLING)
    began = {
        (fault["fault"].partition(":")[0], fault["rank"]): fault["began_unix_ns"] for fault in run.result["faults"]
    }
    assert set(began) == {("straggler", 1), ("entry", 0)}
    assert all(abs(time.time_ns() - each) < 3600e9 for each in began.values())
    assert run.result["dials"]["faults"] == list(STRAGGLING[3::2])


@pytest.mark.parametrize(
    ("kind", "slow"),
    [("slow-link", lambda to, _source: to == 1), ("slow-source", lambda _to, source: source == 1)],
    ids=["slow-link", "slow-source"],
)
def test_only_transfers_over_the_link_are_slow(faulty: RunFaulty, kind: str, slow: Callable[[int, int], bool]) -> None:
    """Transfers to the rank, or from it, take several times as long as all others; its compute does not."""
    run = faulty("--ranks", "3", "--compute-ms", "20", "--steps", "12", *faults(f"{kind}:rank=1,ms=15"))
    typical = run.typical(transfers)
    pairs = [(to, source) for to in range(3) for source in range(3) if to != source]
    assert min(typical[pair] for pair in pairs if slow(*pair)) > 2 * max(
        typical[pair] for pair in pairs if not slow(*pair)
    )
    compute = run.typical(computes).sum(axis=1)
    assert compute[1] < 1.5 * np.median(compute)


def test_links_recover_when_the_fault_ends(faulty: RunFaulty) -> None:
    """The last steps are as fast as without it."""
    run = faulty("--steps", "40", "--compute-ms", "10", *faults("slow-link:rank=1,ms=40,for=1"))
    slow = [transfers(step)[1, 0] > 10e6 for step in run.steps]
    assert slow[1]
    assert not all(slow[-10:])


def test_a_rank_that_shares_its_core_waits_for_it(faulty: RunFaulty) -> None:
    """Beside one busy process, it waits about as long as it runs, and it is runnable while it computes."""
    run = faulty("--steps", "20", "--compute-ms", "5", *faults("steal:rank=1,processes=1"))
    compute = np.median([computes(step)[1].sum() for step in run.steps])
    assert np.median([step.run_delay_us[1] for step in run.steps]) * 1e3 > 0.25 * compute


@pytest.mark.parametrize("where", ["compute", "entry"])
def test_a_rank_hangs_for_as_long_as_asked(faulty: RunFaulty, where: str) -> None:
    """In one step, either its compute or its entry takes that long; then the run goes on to its end."""
    run = faulty("--steps", "20", *faults(f"hang:where={where},for=1,after=0.1"))
    longest = max(
        int(computes(step)[1].max() if where == "compute" else step.begin_ns[1] - step.begin_ns[0])
        for step in run.steps
    )
    assert longest > 0.5e9
    assert run.result["outputs_identical"]


@pytest.mark.parametrize("where", ["compute", "collective"])
def test_a_run_with_a_hung_rank_ends_when_its_time_is_over(faulty: RunFaulty, where: str) -> None:
    """The rank wakes up at the end of the duration, and all of them finish."""
    run = faulty("--duration", "1", *faults(f"hang:where={where},after=0.3"))
    assert run.result["outputs_identical"]
    assert [fault["rank"] for fault in run.result["faults"]] == [1]


def test_a_killed_rank_is_lost(faulty: RunFaulty) -> None:
    """As if someone else had killed it; the fault is listed all the same."""
    run = faulty("--duration", "60", *faults("kill:rank=1,after=0.2"), code=ExitCode.RANK_LOST)
    assert run.result["rank_errors"]["1"] == "killed by SIGKILL"
    assert [fault["rank"] for fault in run.result["faults"]] == [1]


def test_ranks_that_pull_have_faults_too(faulty: RunFaulty) -> None:
    """A straggler runs fewer steps than the others."""
    run = faulty("--transport", "pull", "--duration", "2", *faults("straggler:rank=0,ms=10"))
    first, last = run.result["summary"]["series"][0]["ranks"]
    assert 2 * first["steps"] < last["steps"]


def busy(pids: Collection[int]) -> list[int]:
    """Return those of the processes that keep a core busy."""
    return [pid for pid in pids if "swtrace.cli.demo.busy" in command_line(pid)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_busy_process_outlives_the_demo(start_swtrace: StartSwtrace, number: signal.Signals) -> None:
    """However the demo ends."""
    run_id = f"outlived-{number.name}"
    arguments = ("demo", "--no-daemon", *DEMO, "--duration", "600", *faults("steal:processes=2"))
    process = start_swtrace(*arguments, extra={"SWTRACE_RUN_ID": run_id})
    assert process.stderr is not None
    assert any(line.startswith("fault: rank 1 shares a core with 2 busy processes") for line in process.stderr)
    children = descendants(process.pid)
    assert len(busy(children)) == 2
    process.send_signal(number)
    process.communicate(timeout=patience())
    eventually(lambda: not any(map(runs, children)), "all processes end")
    memory = Path(memory_folder() or tempfile.gettempdir())
    left = [found.parent for found in memory.glob(f"swtrace-demo-*/rendezvous-{run_id}")]
    assert len(left) == (number == signal.SIGKILL)  # then nobody was left to remove it
    for folder in left:
        shutil.rmtree(folder)
