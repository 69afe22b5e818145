"""Fixtures of the tests that run a part of vLLM."""

from tests.support.vllm.fixtures import folder, workload

__all__ = ["folder", "workload"]
