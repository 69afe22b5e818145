"""Signals of a command with children: ignored ones stay ignored, early ones reach the child."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from swtrace.cli.exit_codes import ExitCode
from swtrace.cli.signals import SignalForwarder
from tests.support.commands import StartSwtrace
from tests.support.patience import patience

ENDLESS = (sys.executable, "-c", "print('ready', flush=True); import time; time.sleep(600)")


@pytest.mark.parametrize("arguments", [("run", "--no-daemon", "--", *ENDLESS), ("record", "-o", "x.swrec")])
def test_ignored_hang_up_stays_ignored(
    start_swtrace: StartSwtrace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: Sequence[str]
) -> None:
    """Under nohup a command outlives its terminal; another signal still ends it in order."""
    monkeypatch.chdir(tmp_path)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        process = start_swtrace(*arguments)
    finally:
        signal.signal(signal.SIGHUP, before)
    said = process.stdout if arguments[0] == "run" else process.stderr
    assert said is not None
    assert said.readline()
    process.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=patience())
    # A recording that saw no rank has failed.
    assert process.returncode == (128 + signal.SIGTERM if arguments[0] == "run" else ExitCode.FAILED)


def test_a_signal_that_comes_before_the_child_reaches_it() -> None:
    """What arrives while the child is being started is sent to it afterwards, and not lost."""
    code = "import signal; signal.sigwait({signal.SIGUSR1}); print('caught')"
    before = signal.getsignal(signal.SIGUSR1)
    with SignalForwarder() as signals:
        os.kill(os.getpid(), signal.SIGUSR1)
        # A child inherits the mask, so the signal waits for it however slow it starts.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as child:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            signals.attach(child)
            try:
                out, _ = child.communicate(timeout=patience())
            finally:
                child.kill()
    assert out == b"caught\n"
    assert signal.getsignal(signal.SIGUSR1) is before
