"""The header of a ring: identity, series and clocks survive, and damaged ones are refused."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from swtrace.errors import RingFormatError, RingFullError
from swtrace.plan_file import Interval
from swtrace.trace.clocks import ClockAnchor
from swtrace.trace.header import MAX_LAYERS, decode_identity, decode_series, encode_identity, encode_series
from swtrace.trace.identity import Offload, Planned, RankIdentity, UntracedRank, Workload
from swtrace.trace.recorder import Recorder, identity_of_this_process
from swtrace.trace.ring_reader import RingReader
from swtrace.trace.schema import SERIES_ENTRY
from tests.support.writer_process import identity, series_info


def test_identity_series_and_clocks_come_back(tmp_path: Path) -> None:
    """A reader knows the rank, each series (also those entered later, and refused ones) and both clocks."""
    me = identity(3)
    recorder = Recorder.create(tmp_path, me, records=64)
    with RingReader.open(recorder.path) as reader:
        assert (reader.identity, reader.series()) == (me, ())
        infos = (series_info("a"), series_info("b", refused="world size 1"), series_info("c", window_count=7))
        for number, info in enumerate(infos, 1):
            assert recorder.add_series(info).index == number - 1
            assert reader.series() == infos[:number]
        assert [len(reader.windows(index)) for index in range(3)] == [2, 0, 7]
        first = reader.anchor()
        recorder.renew_anchor()
        assert reader.anchor().monotonic_ns > first.monotonic_ns
        now = ClockAnchor.take()
        # Both anchors relate the same clocks, so they differ only by adjustments of CLOCK_REALTIME.
        assert abs(reader.anchor().to_realtime(now.monotonic_ns) - now.realtime_ns) < 10**9
        assert not reader.closed()
        recorder.close()
        assert reader.closed()
        assert not reader.alive()


@pytest.mark.parametrize(
    ("start_layer", "stack", "layers"),
    [
        (0, 61, range(0, 61, 2)),
        (30, 31, (31, 40, 60)),
        (0, MAX_LAYERS, range(MAX_LAYERS)),
        (7, MAX_LAYERS, [n for n in range(7, 7 + MAX_LAYERS) if n * n % 11 < 5]),
    ],
)
def test_any_part_of_a_stack_fits(start_layer: int, stack: int, layers: Sequence[int], tmp_path: Path) -> None:
    """A reader knows which layers a series shares, of how many, however many and irregular they are."""
    info = series_info(start_layer=start_layer, stack_layers=stack, layers=tuple(layers))
    recorder = Recorder.create(tmp_path, identity(), records=64)
    recorder.add_series(info)
    with RingReader.open(recorder.path) as reader:
        assert reader.series() == (info,)
    recorder.close()


@pytest.mark.parametrize("layers", ["", "0", "8", "07g", "0x7", "-1", "+7", " 7", "1_0", 7, None, "f" * 2000])
def test_layers_outside_the_stack_are_damage(layers: object) -> None:
    """Shared layers that are none, not those of the stack, or not a number as it is written are refused."""
    entry = encode_series(series_info(start_layer=5, stack_layers=3, layers=(5, 6, 7)), 0)
    values = json.loads(entry[SERIES_ENTRY.size :])
    assert values["layers"] == "7"
    text = json.dumps(values | {"layers": layers}).encode()
    with pytest.raises(RingFormatError):
        decode_series(SERIES_ENTRY.pack(len(text), zlib.crc32(text)) + text)


def test_an_entry_without_its_layers_shares_all() -> None:
    """Rings and recordings from before layers could be left out are read as whole series."""
    info = series_info(start_layer=30)
    values = json.loads(encode_series(info, 0)[SERIES_ENTRY.size :])
    del values["layers"], values["stack_layers"]
    text = json.dumps(values | {"num_layers": 61}).encode()
    assert decode_series(SERIES_ENTRY.pack(len(text), zlib.crc32(text)) + text) == (info, 0)


@pytest.mark.parametrize(("ranks", "characters"), [(2, 300), (60, 60), (400, 0)])
def test_why_ranks_are_untraced_is_cut_to_what_fits(ranks: int, characters: int, tmp_path: Path) -> None:
    """Untraced ranks fit in the table for a group of any size, because their reasons are shortened or left out."""
    group = tuple(range(ranks))
    untraced = tuple(UntracedRank(rank, "\x1b" + 999 * "e") for rank in group[ranks // 2 :])
    recorder = Recorder.create(tmp_path, identity(), records=64)
    recorder.add_series(series_info(group_ranks=group, untraced=untraced))
    with RingReader.open(recorder.path) as reader:
        (info,) = reader.series()
    assert info.untraced == tuple(UntracedRank(rank.rank, ("?" + 999 * "e")[:characters]) for rank in untraced)
    recorder.close()


PLANNED = Planned("0123456789ab", Interval(5.0, 4.5, 5.5), Interval(0.1, 0.0, 0.2), "decode", 8.5, "windows static")


def test_a_plan_comes_back_and_is_left_out_where_the_group_fills_the_table() -> None:
    """A series' plan is read as it was written. A group that leaves no room for it has none, and still fits."""
    read = []
    with suppress(RingFullError):
        for ranks in range(2, 4096, 8):
            info, _ = decode_series(encode_series(series_info(group_ranks=tuple(range(ranks)), planned=PLANNED), 0))
            read.append(info.planned)
    assert read == [PLANNED] * read.count(PLANNED) + [None] * read.count(None)
    assert set(read) == {PLANNED, None}


@pytest.mark.parametrize(
    "change",
    [
        {"digest": ""},
        {"phase": 1},
        {"tokens": -1},
        {"differs": "\x1b[2J"},
        {"step_ns": {"value": 3, "low": 1, "high": 2}},
        {"step_ns": {"value": 3, "low": 1}},
        {"stall_ratio": {"value": float("nan"), "low": 0, "high": 1}},
    ],
)
def test_a_damaged_plan_is_refused(change: dict[str, Any]) -> None:
    """A plan with a wrong value makes the series' entry unreadable, and raises nothing but the error for that."""
    entry = encode_series(series_info(planned=PLANNED), 0)
    document = json.loads(entry[SERIES_ENTRY.size :])
    document["planned"] |= change
    text = json.dumps(document).encode()
    with pytest.raises(RingFormatError, match="damaged ring"):
        decode_series(SERIES_ENTRY.pack(len(text), zlib.crc32(text)) + text)


def test_text_that_terminals_cannot_show_is_replaced(tmp_path: Path) -> None:
    """A model path with control characters neither breaks the rank nor reaches a reader."""
    recorder = Recorder.create(tmp_path, identity(run_id="a/b\n\x1b[2J"), records=64)
    assert recorder.path.parent == tmp_path
    with RingReader.open(recorder.path) as reader:
        assert reader.identity.run_id == "a/b??[2J"
    recorder.close()


def test_the_ring_carries_the_clock() -> None:
    """A ring's header says which clock its instants are of."""
    shifted = replace(identity(), clock_offset="1000.000000000")
    decoded = decode_identity(encode_identity(shifted))
    assert decoded == shifted
    assert decoded.clock != identity().clock


@pytest.mark.parametrize(
    ("environ", "workload"),
    [
        ({}, Workload()),
        (
            {"POD_NAME": "vllm-0", "POD_NAMESPACE": "inference", "NODE_NAME": "gpu-a"},
            Workload(k8s_pod_name="vllm-0", k8s_namespace_name="inference", k8s_node_name="gpu-a"),
        ),
        (
            {"SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": " nightly "},
            Workload(slurm_job_id="4711", slurm_job_name="nightly"),
        ),
        (
            {"OTEL_RESOURCE_ATTRIBUTES": "a=b, k8s.pod.name = x%2Cy,k8s.job.name=j,broken", "POD_NAME": "vllm-0"},
            Workload(k8s_pod_name="x,y", k8s_job_name="j"),
        ),
        ({"OTEL_RESOURCE_ATTRIBUTES": "k8s.pod.name=", "POD_NAME": "vllm-0"}, Workload(k8s_pod_name="vllm-0")),
    ],
)
def test_the_workload_is_read_from_the_ranks_environment(
    environ: dict[str, str], workload: Workload, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ring says which pod, node and job wrote it, as OTEL_RESOURCE_ATTRIBUTES, Kubernetes or Slurm name them."""
    for name in ("POD_NAME", "POD_NAMESPACE", "NODE_NAME", "SLURM_JOB_ID", "SLURM_JOB_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("OTEL_RESOURCE_ATTRIBUTES", raising=False)
    for name, text in environ.items():
        monkeypatch.setenv(name, text)
    recorder = Recorder.create(tmp_path, identity_of_this_process("run", 0), records=64)
    with RingReader.open(recorder.path) as reader:
        assert reader.identity.workload == workload
    recorder.close()


def test_a_workload_that_does_not_fit_is_left_out(tmp_path: Path) -> None:
    """A rank with names that are too long for its ring is traced without them, and odd characters are replaced."""
    long = replace(identity(), workload=Workload(k8s_pod_name="p" * 9999, slurm_job_name="j" * 2047, k8s_job_name="k"))
    recorder = Recorder.create(tmp_path, long, records=64)
    with RingReader.open(recorder.path) as reader:
        assert reader.identity == replace(long, workload=Workload())
    recorder.close()
    odd = replace(identity(), workload=Workload(slurm_job_name="a\x1b[2Jb"))
    assert decode_identity(encode_identity(odd)).workload.slurm_job_name == "a?[2Jb"


def test_an_identity_without_a_workload_is_read() -> None:
    """Rings and recordings from before the workload was recorded are readable; one that is no object is damaged."""
    text = json.loads(encode_identity(identity()))
    del text["workload"]
    assert decode_identity(json.dumps(text).encode()) == RankIdentity(**text)
    workloads: tuple[object, ...] = ([], "pod", {"k8s_pod_name": 7})
    for damaged in workloads:
        with pytest.raises(RingFormatError):
            decode_identity(json.dumps({**text, "workload": damaged}).encode())


def test_how_layers_are_offloaded_comes_back() -> None:
    """A reader knows the pattern and the buffers, and the memory that they take. A damaged entry is refused."""
    offload = Offload(
        group_size=8,
        num_in_group=2,
        buffer_bytes=3 << 20,
        pinned=False,
        params=("down_proj", "gate_up_proj"),
        slots_may_collide=True,
    )
    written = series_info(kind="h2d", queue="stream", offload=offload)
    info, _ = decode_series(encode_series(written, 0))
    assert info == written
    assert info.window_bytes == 3 << 20
    for name, value, says in (
        ("pinned", 1, "pinned is neither true nor false"),
        ("slots_may_collide", None, "slots_may_collide is neither true nor false"),
        ("params", "down_proj", "params is not a list of up to 2730 texts"),
        ("params", ["down_proj", 7], "params is not valid text"),
        ("params", ["down\x1b[2J"], "params is not valid text"),
    ):
        document = json.loads(encode_series(written, 0)[SERIES_ENTRY.size :])
        document["offload"][name] = value
        text = json.dumps(document).encode()
        with pytest.raises(RingFormatError, match=says):
            decode_series(SERIES_ENTRY.pack(len(text), zlib.crc32(text)) + text)


def test_names_of_parameters_that_a_terminal_cannot_show_are_replaced() -> None:
    """A ring stays readable whatever names vLLM was given."""
    offload = Offload(2, 1, 1 << 20, pinned=True, params=("a\x1b[2J", ""))
    info, _ = decode_series(encode_series(series_info(kind="h2d", queue="stream", offload=offload), 0))
    assert info.offload is not None
    assert info.offload.params == ("a?[2J", "")
