"""Labels tell apart runs, series and groups that share a host."""

from __future__ import annotations

from pathlib import Path

from swtrace.trace.recorder import Recorder
from tests.support.daemon_threads import serving
from tests.support.recorded_run import RecordedRun, identity, series_info
from tests.support.scrapes import scrape, value


def test_restarted_run_continues_its_series(tmp_path: Path) -> None:
    """A run that follows an ended one takes over its labels, and one exposition never holds both."""
    first = RecordedRun(tmp_path, run_id="first")
    first.write(3)
    first.close()
    second = RecordedRun(tmp_path, run_id="second")
    with serving(tmp_path) as client:
        second.write(1)
        families = scrape(client)
        assert value(families, "swtrace_rank_up", rank="0") == 1
        assert value(families, "swtrace_steps_total", rank="0") == 1
        assert len(client.get("/api/v1/ranks").json()["ranks"]) == 4
    second.close()


def test_two_runs_at_once_are_told_apart(tmp_path: Path) -> None:
    """Of two runs alive at once, the younger carries its id until its end, and the older keeps its plain labels."""
    old = RecordedRun(tmp_path, run_id="old")
    young = RecordedRun(tmp_path, run_id="young")
    with serving(tmp_path) as client:
        old.write(3)
        young.write(1)
        for _ in range(2):
            samples = scrape(client)["swtrace_steps_total"].samples
            steps = {(s.labels["rank"], s.labels.get("run_id")): s.value for s in samples}
            assert steps == {("0", None): 3, ("1", None): 3, ("0", "young"): 1, ("1", "young"): 1}
            old.close()
            young.close()


def test_information_has_the_labels_by_which_samples_are_told_apart(tmp_path: Path) -> None:
    """What describes a rank joins its other samples by rank and run id, and names the run in another label."""
    old = RecordedRun(tmp_path, run_id="old")
    young = RecordedRun(tmp_path, run_id="young")
    with serving(tmp_path) as client:
        families = scrape(client)
    for name in ("swtrace_rank_info", "swtrace_series_info"):
        labels = [sample.labels for sample in families[name].samples if sample.labels["rank"] == "0"]
        assert [(each.get("run_id"), each["run"]) for each in labels] == [(None, "old"), ("young", "young")]
    old.close()
    young.close()


def test_one_name_for_two_series_of_a_rank_is_told_apart(tmp_path: Path) -> None:
    """A rank that uses one name for two ranges of layers exposes both, by name and start layer."""
    recorder = Recorder.create(tmp_path, identity("run-1", 0))
    recorder.add_series(series_info(0))
    recorder.add_series(series_info(0, start_layer=30))
    with serving(tmp_path) as client:
        samples = scrape(client)["swtrace_series_info"].samples
    assert {s.labels["series"] for s in samples} == {"self_attn.o_proj@0", "self_attn.o_proj@30"}
    recorder.close()


def test_one_name_for_two_groups_of_a_rank_is_told_apart(tmp_path: Path) -> None:
    """Both series of the rank are served, each under one label and one id on all of its ranks."""
    recorders = [Recorder.create(tmp_path, identity("run-1", rank)) for rank in range(3)]
    for rank, group in ((0, (0, 1)), (1, (0, 1)), (0, (0, 2)), (2, (0, 2))):
        recorders[rank].add_series(series_info(group.index(rank), group_ranks=group))
    with serving(tmp_path) as client:
        samples = scrape(client)["swtrace_series_info"].samples
        described = client.get("/api/v1/series").json()["series"]
    labels = {"0-1": "self_attn.o_proj@0/0-1", "0,2": "self_attn.o_proj@0/0,2"}
    assert sorted((s.labels["rank"], s.labels["series"]) for s in samples) == [
        ("0", labels["0,2"]),
        ("0", labels["0-1"]),
        ("1", labels["0-1"]),
        ("2", labels["0,2"]),
    ]
    assert {series["id"] for series in described} == {f"run-1/{label}" for label in labels.values()}
    for recorder in recorders:
        recorder.close()
