"""Boundaries of steps: a step begins and ends with the call of the worker that runs the model.

Every executor calls every kind of worker through ``WorkerWrapperBase``. An orderly shutdown takes the same path.
The ring of a killed worker can be read without one.
"""

from __future__ import annotations

import functools
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from swtrace.series import recording
from swtrace.series.operations import forget, numbered
from swtrace.series.watched import watched
from swtrace.trace.schema import Phase
from swtrace.vllm.engine import delegating_method
from swtrace.vllm.groups import Unobservable
from swtrace.vllm.request_traces import RequestTraces
from swtrace.vllm.startup_agreement import leave

if TYPE_CHECKING:
    from collections.abc import Callable

_MARKED = "_swtrace_marked"


def mark_steps() -> None:
    """Make the workers of this process begin and end steps of their series, and close them at shutdown; idempotent.

    Raises:
        Unobservable: vLLM's worker wrapper has an unknown shape.
    """
    from vllm.v1.worker import worker_base

    wrapper = getattr(worker_base, "WorkerWrapperBase", None)
    execute_model: Callable[..., Any] | None = getattr(wrapper, "execute_model", None)
    if wrapper is None or execute_model is None:
        raise Unobservable("this vLLM has no WorkerWrapperBase.execute_model, where steps begin and end")
    if hasattr(wrapper, _MARKED):
        return
    shutdown = getattr(wrapper, "shutdown", None)
    # Most versions define this one only on the worker; the wrapper then forwards it.
    execute_dummy_batch = getattr(wrapper, "execute_dummy_batch", delegating_method("execute_dummy_batch"))

    traces = RequestTraces()

    @functools.wraps(execute_model)
    def marked_execute_model(self: Any, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        tokens, links = scheduler_output.total_num_scheduled_tokens, traces.of_step(scheduler_output)
        if tokens == 0:  # no forward, only the cleanup of requests
            return execute_model(self, scheduler_output, *args, **kwargs)
        batch = {
            "phase": phase(scheduler_output),
            "tokens": tokens,
            "requests": len(scheduler_output.num_scheduled_tokens),
            "links": links,
        }
        return _step(batch, execute_model, self, scheduler_output, *args, **kwargs)

    def marked_execute_dummy_batch(self: Any, *args: Any, **kwargs: Any) -> Any:
        return _step({"phase": Phase.DUMMY, "tokens": 1}, execute_dummy_batch, self, *args, **kwargs)

    def closing_shutdown(self: Any, *args: Any, **kwargs: Any) -> Any:
        # vLLM kills a worker whose shutdown takes long, and peers may take long to receive its last broadcasts.
        recording.announce_close()
        try:
            forget()
            leave()
        finally:
            recording.close()
        return shutdown(self, *args, **kwargs) if shutdown is not None else None

    wrapper.execute_model = marked_execute_model
    wrapper.execute_dummy_batch = marked_execute_dummy_batch
    wrapper.shutdown = closing_shutdown
    setattr(wrapper, _MARKED, True)


def phase(scheduler_output: Any) -> Phase:
    """Return whether the scheduled tokens belong to prompts, to generation, or to both.

    A request works on its prompt until it has its first output token. One that resumes after preemption
    works on it again.
    """
    cached = scheduler_output.scheduled_cached_reqs
    resumed = cached.resumed_req_ids
    working = zip(cached.req_ids, cached.num_output_tokens, strict=True)
    decoding = sum(outputs > 0 and request not in resumed for request, outputs in working)
    if len(scheduler_output.scheduled_new_reqs) + len(cached.req_ids) > decoding:
        return Phase.MIXED if decoding else Phase.PREFILL
    return Phase.DECODE


def _step(batch: dict[str, Any], forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    running = [series for series in numbered() if series.post_processed]
    with ExitStack() as stack:
        for copies in watched():
            stack.enter_context(copies.step(**batch))
        for series in running:
            stack.enter_context(series.step(**batch))
        try:
            result = forward(*args, **kwargs)
        except SystemExit:  # raised by vLLM's signal handler to end a worker
            recording.announce_close()
            raise
    return result
