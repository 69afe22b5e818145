"""Looks whether an installed vLLM has what the plugin holds on to, and prints what it lacks as a JSON list.

A program of its own (``python -m swtrace.cli.doctor.check_seam``): importing vLLM takes long, and may fail
in ways that no ``except`` catches.
"""

from __future__ import annotations

import json
import sys

from swtrace.vllm.support import missing

if __name__ == "__main__":
    import vllm  # noqa: F401 (its own failure to import is another finding)

    sys.stdout.write(json.dumps(missing()) + "\n")
