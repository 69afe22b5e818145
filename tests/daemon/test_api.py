"""The live API: everything a view needs, under stable names, and clear refusals."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from swtrace.daemon import api
from swtrace.daemon.api import CELL_FIELDS, RANK_FIELDS
from swtrace.daemon.http_app import DOCUMENTS
from swtrace.ledger.facts import Pattern, Straggler
from swtrace.observing import watch_rings
from swtrace.trace.identity import RankKey
from swtrace.trace.schema import Phase
from tests.support.daemon_threads import serving
from tests.support.patience import eventually
from tests.support.recorded_run import (
    LAYER_BYTES,
    LAYER_NS,
    REACH_NS,
    STALL_NS,
    STALLED_POSITION,
    TRANSFER_NS,
    PullRun,
    RecordedRun,
    series_info,
)

SERIES = "run-1/self_attn.o_proj@0/0-1"


def get(client: httpx.Client, path: str, **parameters: str | int) -> dict[str, object]:
    """Return a document."""
    response = client.get(f"/api/v1/{path}", params=parameters)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/json"
    document = response.json()
    assert isinstance(document, dict)
    return document


def test_snapshot_holds_every_document_of_one_moment(client: httpx.Client) -> None:
    """One call returns what all the others return."""
    snapshot = get(client, "snapshot")
    for name in ("ranks", "series", "steps", "health"):
        document = get(client, name)
        assert set(document) <= set(snapshot)
        for field in set(document) - {"taken_ns", "taken_unix_ns"}:
            assert document[field] == snapshot[field], field
    assert snapshot["api"] == 1


def test_ranks_carry_identity_ring_and_anchor(client: httpx.Client, run: RecordedRun) -> None:
    """A rank has its identity, whether it is alive, and counts of its records that add up."""
    ranks = client.get("/api/v1/ranks").json()["ranks"]
    assert [rank["rank"] for rank in ranks] == [0, 1]
    rank = ranks[1]
    assert (rank["run_id"], rank["host"], rank["model"]) == ("run-1", "host-a", "tiny")
    assert (rank["up"], rank["closed"], rank["down_for_ns"]) == (True, False, 0)
    ring = rank["ring"]
    assert ring["written"] == run.written == ring["delivered"]
    assert ring["written"] == sum(ring[count] for count in ("delivered", "skipped", "lapped", "damaged", "pending"))
    assert rank["records"] == run.written
    assert all(count == 0 for count in rank["oddities"].values())
    assert rank["series"][0]["series"] == SERIES
    assert rank["series"][0]["owned_bytes"] == 2 * LAYER_BYTES


def test_windows_tell_layer_and_step(client: httpx.Client, run: RecordedRun) -> None:
    """A window has its state and what it holds; a free one holds nothing."""
    windows = client.get("/api/v1/windows").json()["windows"]
    (of_rank_1,) = (entry for entry in windows if entry["rank"] == 1)
    assert of_rank_1["series"] == SERIES
    held, free = of_rank_1["windows"]
    assert (held["state"], held["layer"], held["step"]) == ("in_use", 4, 9)
    assert held["issued_ns"] == run.begin_ns(9) + 3 * LAYER_NS + REACH_NS
    assert (free["state"], free["layer"], free["step"]) == ("free", None, None)


def test_series_carry_totals_and_recent_steps(client: httpx.Client, run: RecordedRun) -> None:
    """A series has totals since the daemon's start and the ratios over recent steps, per rank."""
    run.write(10)
    (series,) = client.get("/api/v1/series").json()["series"]
    assert series["id"] == SERIES
    assert series["group_ranks"] == [0, 1]
    rank = series["ranks"][1]
    assert rank["totals"]["waits"] == {"on_time": 20, "stalled": 10, "own": 20, "prefilled": 0, "untimed": 0}
    assert rank["totals"]["stall"]["sum_ns"] == 10 * STALL_NS
    assert len(rank["totals"]["stall"]["counts"]) == len(rank["totals"]["stall"]["bounds_ns"]) + 1
    assert rank["recent"]["steps"] == 20
    assert rank["recent"]["stall_ratio"] == pytest.approx(STALL_NS / (6 * LAYER_NS))
    assert 0 <= rank["recent"]["efficiency"] <= 1
    assert rank["effective_prefetch_step"] == 1


def test_stragglers_are_named(run: RecordedRun) -> None:
    """A series with stragglers names their global ranks and their excess."""
    with watch_rings(run.directory) as watch:
        watch.drain()
        (facts,) = watch.ledger.facts().series
    straggler = Straggler(
        (RankKey("run-1", 1),),
        excess_ns=7,
        share=0.25,
        pattern=Pattern.PHASE,
        often=0.5,
        period=None,
        phase=Phase.PREFILL,
        confidence=0.99,
        since_ns=5,
        since_step=4,
    )
    assert api._series(facts)["stragglers"] == []
    document = json.loads(json.dumps(api._series(dataclasses.replace(facts, stragglers=(straggler,)))))
    assert document["stragglers"] == [
        {
            "ranks": [1],
            "excess_ns": 7,
            "share": 0.25,
            "pattern": "phase",
            "often": 0.5,
            "period": None,
            "phase": "prefill",
            "confidence": 0.99,
            "since_ns": 5,
            "since_step": 4,
        }
    ]


def test_steps_carry_all_instants(client: httpx.Client, run: RecordedRun) -> None:
    """A step has every instant of every rank and layer in nanoseconds, as recorded."""
    step = client.get("/api/v1/steps", params={"limit": 1}).json()["steps"][0]
    assert (step["step"], step["complete"], step["aborted"]) == (9, True, False)
    assert step["ranks"] == [0, 1]
    assert step["source"] == [0, 1, 0, 1, 0]
    assert step["begin_ns"] == [run.begin_ns(9)] * 2
    assert step["phase"] == ["decode", "decode"]
    assert step["issued_ns"][1][4] == run.begin_ns(9) + 3 * LAYER_NS + REACH_NS
    assert step["ready_ns"][1][4] - step["issued_ns"][1][4] == TRANSFER_NS
    assert step["stall_ns"][1][STALLED_POSITION] == STALL_NS
    assert sum(cause[1][STALLED_POSITION] for cause in step["cause_ns"]) == STALL_NS
    assert step["observed"][1][4] == "callback"
    assert step["window"][0][0] is None
    for name in CELL_FIELDS:
        assert name in step
    for name in RANK_FIELDS:
        assert len(step[name]) == 2


def test_unknown_cells_are_null(tmp_path: Path) -> None:
    """Unrecorded values are null, never a number that looks valid."""
    run = RecordedRun(tmp_path)
    run.write_rank(0, 0)
    run.write_rank(1, 0, ended=False)
    with serving(tmp_path) as client:
        assert client.get("/api/v1/steps").json()["steps"] == []
        run.close()

        def finished() -> bool:
            return bool(client.get("/api/v1/steps").json()["steps"])

        eventually(finished, "the step to be finished without its rank")
        step = client.get("/api/v1/steps").json()["steps"][0]
    assert step["complete"] is False
    assert step["ended"] == [True, False]
    assert step["end_ns"][1] is None
    assert step["transfer_ns"][0][0] is None


def test_since_and_limit_select_steps(client: httpx.Client, run: RecordedRun) -> None:
    """A reader that passes its cursor sees every step once. A limit keeps the newest and counts the skipped."""
    first = client.get("/api/v1/steps", params={"limit": 64}).json()
    assert [step["step"] for step in first["steps"]] == list(range(10))
    assert (first["cursor"], first["skipped"]) == (10, 0)
    assert client.get("/api/v1/steps", params={"since": first["cursor"]}).json()["steps"] == []
    run.write(5)
    second = client.get("/api/v1/steps", params={"since": first["cursor"], "limit": 3}).json()
    assert [step["step"] for step in second["steps"]] == [12, 13, 14]
    assert [step["number"] for step in second["steps"]] == [13, 14, 15]
    assert (second["cursor"], second["skipped"]) == (15, 2)


def test_run_and_series_select(client: httpx.Client) -> None:
    """A document can be limited to a run and a series, by id or name. A missing one is named in the error."""
    for series in (SERIES, "self_attn.o_proj"):
        assert len(client.get("/api/v1/series", params={"series": series}).json()["series"]) == 1
        assert len(client.get("/api/v1/windows", params={"series": series}).json()["windows"]) == 2
    for parameter, known in (("series", "self_attn.o_proj"), ("run", "run-1")):
        refused = client.get("/api/v1/snapshot", params={parameter: "other"})
        assert refused.status_code == 404
        assert refused.json() == {"error": f"{parameter}='other' does not exist; must be one of: {known}"}


def test_fields_narrow_the_cells(client: httpx.Client) -> None:
    """A view that shows only stall can request only stall."""
    step = client.get("/api/v1/steps", params={"fields": "stall_ns,slack_ns", "limit": 1}).json()["steps"][0]
    assert {"stall_ns", "slack_ns"} <= set(step)
    assert not (set(CELL_FIELDS) - {"stall_ns", "slack_ns"}) & set(step)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/v1/nothing", 404),
        ("/api/v1/steps?limit=65", 400),
        ("/api/v1/steps?limit=-1", 400),
        ("/api/v1/steps?since=x", 400),
        ("/api/v1/steps?sinse=1", 400),
        ("/api/v1/steps?fields=stall", 400),
        ("/api/v1/recording?nope=1", 400),
        ("/api/v1/recording?run=", 400),
        ("/api/v1/recording?newest=-1", 400),
        ("/api/v1/recording?every=0", 400),
        ("/api/v1/recording?every=x", 400),
        (f"/api/v1/recording?every={'9' * 5000}", 400),
    ],
)
def test_refusals_say_why(client: httpx.Client, path: str, status: int) -> None:
    """Unknown documents, parameters and values are refused with a message."""
    response = client.get(path)
    assert response.status_code == status
    assert response.json()["error"]


def test_refused_series_is_listed_without_an_id(tmp_path: Path) -> None:
    """A rank lists requested linears that are not shared, with the reason."""
    run = RecordedRun(tmp_path)
    run.recorders[0].add_series(series_info(0, name="x", refused="too odd", window_count=0, owned_layers=0))
    with serving(tmp_path) as client:
        entry = client.get("/api/v1/ranks").json()["ranks"][0]["series"][1]
    assert (entry["series"], entry["name"], entry["refused"]) == (None, "x", "too odd")
    run.close()


def test_garbage_is_told_and_harms_nobody(client: httpx.Client, run: RecordedRun) -> None:
    """Files that are not rings are named with the problem, and the other ranks are served."""
    (run.directory / "ring-garbage-0-00000000.swt").write_bytes(b"\xff" * 300_000)
    (run.directory / "ring-short-0-00000000.swt").write_bytes(b"")
    problems = client.get("/api/v1/health").json()["problems"]
    assert len(problems) == 2
    assert all(problem["message"] for problem in problems)
    assert client.get("/api/v1/ranks").json()["ranks"][0]["ring"]["delivered"] == run.written
    assert client.get("/healthz").text == "ok\n"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_documents_are_plain_json(client: httpx.Client, name: str) -> None:
    """No document contains NaN or an infinity, which JSON lacks."""
    text = client.get(f"/api/v1/{name}").text
    json.loads(text, parse_constant=lambda constant: pytest.fail(f"{constant} in {name}"))


def test_documentation_names_every_field(client: httpx.Client) -> None:
    """docs/api.md names every document and every field in them."""
    text = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8")
    undocumented = {name for name in DOCUMENTS if f"/api/v1/{name}" not in text}
    for name in DOCUMENTS:
        undocumented |= {field for field in fields(client.get(f"/api/v1/{name}").json()) if f"`{field}`" not in text}
    assert undocumented == set()


def fields(document: object) -> Iterator[str]:
    """Yield the names of all fields of a document, except in tables by cause, outcome, phase, reason and kind."""
    if isinstance(document, dict):
        for name, part in document.items():
            yield name
            if name not in {"cause_ns", "waits", "step_duration", "dropped", "untimed_steps", "numbers"}:
                yield from fields(part)
    elif isinstance(document, list):
        for part in document:
            yield from fields(part)


def test_ranks_on_several_hosts_have_their_alignment(tmp_path: Path) -> None:
    """A series says how its second host's clock is aligned, and a step what was added to each rank's instants."""
    hour = 3600 * 10**9
    run = RecordedRun(tmp_path, hosts=("host-a", "host-b"), ahead_ns=hour)
    with serving(tmp_path) as client:
        run.write(10)
        snapshot = client.get("/api/v1/snapshot").json()
    run.close()
    (series,) = snapshot["series"]
    (clock,) = series["alignment"]
    assert (clock["ranks"], clock["method"], clock["restarts"]) == ([1], "broadcasts", 0)
    assert 0 < clock["bound_ns"] < 1.01 * TRANSFER_NS
    assert abs(clock["offset_ns"] + hour) <= clock["bound_ns"]
    assert [rank["host"] for rank in series["ranks"]] == ["host-a", "host-b"]
    step = snapshot["steps"][-1]
    assert step["comparable"]
    assert step["clock_shift_ns"] == [0, clock["offset_ns"]]
    assert (step["clock_bound_ns"][0], step["clock_bound_ns"][1] >= clock["bound_ns"]) == (0, True)
    assert step["begin_ns"][1] - step["clock_shift_ns"][1] == run.begin_ns(step["step"]) + hour


def test_one_clock_needs_no_alignment(client: httpx.Client) -> None:
    """Without other hosts nothing is aligned, and nothing is added to instants."""
    snapshot = get(client, "snapshot")
    assert snapshot["series"][0]["alignment"] == []  # type: ignore[index]
    assert snapshot["steps"][-1]["clock_shift_ns"] == snapshot["steps"][-1]["clock_bound_ns"] == [0, 0]  # type: ignore[index]


def test_steps_of_a_pull_series_are_each_one_rank_s(tmp_path: Path) -> None:
    """Steps of different ranks keep their numbers side by side, and a limit is per rank."""
    run = PullRun(tmp_path)
    with serving(tmp_path) as client:
        run.write_each(5, 3)
        steps = get(client, "steps", limit=4)["steps"]
        series = client.get("/api/v1/series").json()["series"][0]
    run.close()
    assert isinstance(steps, list)
    numbers = {rank: [step["step"] for step in steps if step["rank"] == rank] for rank in (0, 1)}
    assert numbers == {0: [1, 2, 3, 4], 1: [0, 1, 2]}
    assert all(step["complete"] and step["ended"] == [step["rank"] == 0, step["rank"] == 1] for step in steps)
    assert [rank["totals"]["steps"] for rank in series["ranks"]] == [5, 3]
    assert (series["stragglers"], series["pending_steps"]) == ([], 0)
