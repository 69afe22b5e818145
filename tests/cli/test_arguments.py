"""Options that several commands share: what cannot be meant is refused in one line, before anything begins."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from swtrace.cli.exit_codes import ExitCode
from tests.support.commands import assert_one_line, clean_environment, run_swtrace


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("export", "-f", "csv", "-o", "t.csv", "--series", "nope", "FILE"), ("--series='nope'", "self_attn.o_proj")),
        (("top", "--once", "--dir", "RINGS", "--series", "nope"), ("no series 'nope'", "self_attn.o_proj")),
        (("top", "--once", "--dir", "RINGS", "--run", "bogus"), ("no run 'bogus'", "run-1")),
        (("top", "--once", "--dir", "RINGS", "--rank", "7"), ("Rank 7", "0, 1")),
        (("top", "--json", "--dir", "RINGS", "--phase", "prefill"), ("phase prefill", "decode")),
        (("run", "--series", "", "--", sys.executable, "-V"), ("--series=''",)),
        (("run", "--listen", "127.0.0.1:99999", "--", sys.executable, "-V"), ("--listen='127.0.0.1:99999'",)),
        (("daemon", "--listen", "bogus"), ("--listen='bogus'",)),
        (("record", "--connect", "foo:bar", "-o", "y.swrec"), ("--connect='foo:bar'",)),
        (("record", "--connect", "https://a:s3cret@h", "-o", "y.swrec"), ("must not contain a user or a password",)),
        (("top", "--once", "--user", "alice"), ("--user needs --connect",)),
        (("top", "--once", "--connect", "localhost:1", "--ca", "none.pem"), ("--ca (SWTRACE_CA)", "none.pem")),
        (("record", "--connect", "localhost:1", "--user", "alice", "-o", "y.swrec"), ("--password-file", "missing")),
        (("daemon", "--watch", "foo:bar"), ("--watch='foo:bar'", "HOST:PORT")),
        (("daemon", "--watch", "dns+foo:bar"), ("--watch='foo:bar'", "HOST:PORT")),
        (("daemon", "--watch", ","), ("--watch=','",)),
        (("daemon", "--watch", "https://a:s3cret@h"), ("must not contain a user or a password",)),
        (("daemon", "--dir", "RINGS", "--watch", "localhost:1"), ("--dir and --watch",)),
        (("daemon", "--watch", "localhost:1", "--watch-every", "0"), ("--watch-every='0'", "from 1 to 1048576")),
        (("daemon", "--watch-every", "2"), ("--watch-every needs --watch",)),
        (("daemon", "--user", "alice"), ("--user needs --watch",)),
        (("daemon", "--watch", "localhost:1", "--ca", "none.pem"), ("--ca (SWTRACE_CA)", "none.pem")),
        (("daemon", "--web-config", ""), ("--web-config=''",)),
        (("daemon", "--web-config", "none.yml"), ("none.yml cannot be read",)),
        (("record", "-o", "-"), ("stdout",)),
        (("export", "-f", "parquet", "-o", "-", "FILE"), ("parquet", "stdout")),
        (("export", "-f", "csv", "-o", "t.csv", "--sample", "0.5", "FILE"), ("--sample", "--format csv")),
        (("export", "-f", "perfetto", "-o", "t.pb", "--table", "steps", "FILE"), ("--table", "--format perfetto")),
        (("export", "-f", "otlp", "-o", "t.csv", "FILE"), ("--output", "--format otlp")),
        (("record", "-o", "y.swrec", "--dir", "RINGS", "--connect", "localhost:1"), ("--dir and --connect",)),
        (("top", "--once", "--dir", "RINGS", "--connect", "localhost:1"), ("--dir and --connect",)),
        (("export", "-f", "otlp", "FILE"), ("--endpoint", "OTEL_EXPORTER_OTLP_ENDPOINT")),
        (("export", "-f", "otlp", "--endpoint", "nowhere", "FILE"), ("--endpoint='nowhere'",)),
        (("record", "--connect", ",", "-o", "y.swrec"), ("--connect=','",)),
        (("top", "--once", "--connect", ","), ("--connect=','",)),
        (("record", "--run", "", "--until-end", "-o", "y.swrec"), ("--run=''",)),
        (("daemon", "--run", " "), ("--run=' '",)),
        (("top", "--once", "--run", ""), ("--run=''",)),
        (("record", "--dir", "", "--until-end", "-o", "y.swrec"), ("--dir=''",)),
        (("daemon", "--dir", ""), ("--dir=''",)),
        (("top", "--once", "--dir", ""), ("--dir=''",)),
        (("top", "--once", "--replay", ""), ("--replay=''",)),
        (("record", "-o", ""), ("--output=''",)),
        (("export", "-f", "csv", "-o", "", "FILE"), ("--output=''",)),
        (("report", "-o", "", "FILE"), ("--output=''",)),
        (("stats", ""), ("FILE=''",)),
        (("diff", "FILE", ""), ("B=''",)),
        (("top", "--once", "--dir", "RINGS", "--theme", "nope"), ("no theme 'nope'", "swtrace-dark")),
        (("run", "--json", "RINGS", "--", sys.executable, "-c", "open('x', 'w')"), ("--json", "/rings", "folder")),
    ],
)
def test_what_matches_nothing_is_refused_with_what_there_is(
    recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: Sequence[str], words: Sequence[str]
) -> None:
    """A selection or an address that cannot be meant ends in one line and status 2, and no file is made."""
    monkeypatch.chdir(tmp_path)
    places = {"FILE": str(recording), "RINGS": str(recording.parent / "rings")}
    done = run_swtrace([places.get(each, each) for each in arguments], clean_environment(tmp_path / "rings"))
    assert_one_line(done, ExitCode.USAGE, *words)
    assert done.stdout == ""
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == []
