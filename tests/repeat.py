"""Run a test command repeatedly, and report all tests that ever failed: ``make test-repeat RUNS=20 LOAD=2``."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+)", re.MULTILINE)
_RESULT = re.compile(r"^=*\s*(\d+ \w+.* in [\d.]+s.*?)\s*=*$", re.MULTILINE)


def main() -> int:
    """Run the command; return 1 if any run failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--load", type=int, default=0, help="processes that keep a core busy meanwhile")
    parser.add_argument("--logs", type=Path, required=True, help="folder of one log per run")
    parser.add_argument("command", nargs="+")
    asked = parser.parse_args()
    asked.logs.mkdir(parents=True, exist_ok=True)
    failures: Counter[str] = Counter()
    failed_runs = 0
    with busy(asked.load):
        for number in range(1, asked.runs + 1):
            log = asked.logs / f"{time.strftime('%Y%m%d-%H%M%S')}-load{asked.load}.log"
            began = time.monotonic()
            with log.open("wb") as output:
                status = subprocess.run(asked.command, stdout=output, stderr=subprocess.STDOUT, check=False).returncode
            text = log.read_text(encoding="utf-8", errors="replace")
            names = sorted(set(_FAILED.findall(text)))
            failures.update(names)
            failed_runs += status != 0
            result = (_RESULT.findall(text) or ["no result"])[-1]
            seconds = time.monotonic() - began
            print(f"run {number}/{asked.runs}: exit {status}, {seconds:.0f} s, {result}; {log}", flush=True)
            for name in names:
                print(f"    {name}", flush=True)
    print(f"{failed_runs} of {asked.runs} runs failed, with {asked.load} busy processes beside them")
    for name, times in failures.most_common():
        print(f"  {times} times  {name}")
    return int(failed_runs > 0)


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Keep that many processes busy."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


if __name__ == "__main__":
    sys.exit(main())
