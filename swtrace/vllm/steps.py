"""A step begins and ends with the worker's call to run the model, whatever kind of worker it is.

``WorkerWrapperBase`` stands in front of every worker, and every executor calls through it. An orderly
shutdown comes the same way; a killed worker's ring needs none to be read.
"""

from __future__ import annotations

import functools
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from swtrace.series import recording
from swtrace.series.operations import forget, numbered
from swtrace.trace.schema import Phase
from swtrace.vllm.engine import handed_through
from swtrace.vllm.groups import Refused

if TYPE_CHECKING:
    from collections.abc import Callable

_MARKED = "_swtrace_marked"


def mark_steps() -> None:
    """Make every worker of this process tell its series where steps begin and end, and when all is over; idempotent.

    Raises:
        Refused: vLLM's worker wrapper has another shape than the one known.
    """
    from vllm.v1.worker import worker_base

    wrapper = getattr(worker_base, "WorkerWrapperBase", None)
    execute_model: Callable[..., Any] | None = getattr(wrapper, "execute_model", None)
    if wrapper is None or execute_model is None:
        raise Refused("vLLM's WorkerWrapperBase.execute_model, where steps begin and end, is gone")
    if hasattr(wrapper, _MARKED):
        return
    shutdown = getattr(wrapper, "shutdown", None)
    # Most versions define this one on the worker only; the wrapper then hands it through.
    execute_dummy_batch = getattr(wrapper, "execute_dummy_batch", handed_through("execute_dummy_batch"))

    @functools.wraps(execute_model)
    def marked_execute_model(self: Any, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        tokens = scheduler_output.total_num_scheduled_tokens
        if tokens == 0:  # no forward: requests are only being cleaned up
            return execute_model(self, scheduler_output, *args, **kwargs)
        requests = len(scheduler_output.num_scheduled_tokens)
        return _step(phase(scheduler_output), tokens, requests, execute_model, self, scheduler_output, *args, **kwargs)

    def marked_execute_dummy_batch(self: Any, *args: Any, **kwargs: Any) -> Any:
        return _step(Phase.DUMMY, 1, 0, execute_dummy_batch, self, *args, **kwargs)

    def closing_shutdown(self: Any, *args: Any, **kwargs: Any) -> Any:
        # vLLM kills a worker that takes long, and peers may take long to receive what this one still sends.
        recording.announce_close()
        try:
            forget()
        finally:
            recording.close()
        return shutdown(self, *args, **kwargs) if shutdown is not None else None

    wrapper.execute_model = marked_execute_model
    wrapper.execute_dummy_batch = marked_execute_dummy_batch
    wrapper.shutdown = closing_shutdown
    setattr(wrapper, _MARKED, True)


def phase(scheduler_output: Any) -> Phase:
    """Tell whether the scheduled tokens belong to prompts, to generation, or to both.

    A request works on its prompt until it has its first output token; one that was preempted and resumes
    works on it again.
    """
    cached = scheduler_output.scheduled_cached_reqs
    resumed = cached.resumed_req_ids
    working = zip(cached.req_ids, cached.num_output_tokens, strict=True)
    decoding = sum(outputs > 0 and request not in resumed for request, outputs in working)
    if len(scheduler_output.scheduled_new_reqs) + len(cached.req_ids) > decoding:
        return Phase.MIXED if decoding else Phase.PREFILL
    return Phase.DECODE


def _step(kind: Phase, tokens: int, requests: int, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    running = [series for series in numbered() if series.post_processed]
    with ExitStack() as stack:
        for series in running:
            stack.enter_context(series.step(phase=kind, tokens=tokens, requests=requests))
        try:
            result = forward(*args, **kwargs)
        except SystemExit:  # that is how vLLM's signal handler ends a worker
            recording.announce_close()
            raise
    return result
