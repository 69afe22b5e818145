"""``python -m swtrace.cli.attached PARENT MODULE ...``: runs a module as a program that ends with its parent."""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys

_PR_SET_PDEATHSIG = 1


def end_with_parent(parent: int, number: int = signal.SIGTERM) -> None:
    """Ask the kernel to send us signal ``number`` when the thread that started us ends.

    Leaves at once if the parent is already gone: then the kernel has nothing to report any more.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(f"swtrace: the process that started this one ({parent}) is gone")


def _main() -> None:
    parent, module, *arguments = sys.argv[1:]
    end_with_parent(int(parent))
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _main()
