"""The vLLM plugin. vLLM calls :func:`register` in each of its processes: front end, engine core, workers.

Without ``SWTRACE=1`` nothing happens: one look into the environment, no import, no object of vLLM touched.
"""

from __future__ import annotations

import os


def register() -> None:
    """Entry point of ``vllm.general_plugins``: put the series runtime behind vLLM's offloader seam.

    Raises:
        SettingsError: a ``SWTRACE_*`` variable has a value that cannot be used.
        SeamError: this vLLM does not have the seam, and ``SWTRACE_STRICT=1``.
    """
    if os.environ.get("SWTRACE") != "1":
        return
    from swtrace.vllm.plugin import install

    install()
