"""The vLLM plugin. vLLM calls :func:`register` in each of its processes: front end, engine core, workers.

Without ``SWTRACE=1`` no object of vLLM is touched. If no ``SWTRACE`` variable is set at all, nothing is imported.
"""

from __future__ import annotations

import os


def register() -> None:
    """Install the series runtime behind vLLM's offloader seam. Entry point of ``vllm.general_plugins``.

    If the value of ``SWTRACE`` itself is invalid, it is unknown whether sharing was requested. vLLM then runs without
    it and the log says so, unless ``SWTRACE_STRICT=1``.

    Raises:
        SettingsError: a ``SWTRACE_*`` variable has an invalid value.
        SeamError: this vLLM lacks the seam, and ``SWTRACE_STRICT=1``.
    """
    if not any(name.startswith("SWTRACE") for name in os.environ):
        return
    import logging

    from swtrace.errors import SettingsError
    from swtrace.settings import from_variable, unknown_variables

    logger = logging.getLogger("vllm.swtrace")
    for sentence in unknown_variables():
        logger.warning("swtrace: %s", sentence)
    try:
        wanted = from_variable("enabled")
    except SettingsError as problem:
        if from_variable("strict"):
            raise
        logger.warning("swtrace is off: %s", problem)
        return
    if wanted:
        from swtrace.vllm.replacements import install

        install()
