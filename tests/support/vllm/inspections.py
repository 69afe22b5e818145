"""What tests inspect inside a rank of vLLM. Imports swtrace only in functions: a test checks what is imported."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any


def untouched(llm: Any) -> dict[str, Any]:
    """Return what would differ in vLLM if the plugin had done anything."""
    import torch
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.offloader import base
    from vllm.v1.worker.worker_base import WorkerWrapperBase

    ours = Path(str(sys.modules["swtrace"].__file__)).parent
    replaceable = (base.create_offloader, EngineArgs.create_engine_config, WorkerWrapperBase.execute_model)
    return {
        "modules": [name for name in sys.modules if name.startswith(("swtrace.vllm.", "swtrace.series"))],
        "additional_config": llm.llm_engine.vllm_config.additional_config,
        "offloader": type(base.get_offloader()).__name__,
        "replaced": [
            function.__qualname__ for function in replaceable if ours in Path(function.__code__.co_filename).parents
        ],
        "operators": hasattr(torch.ops.swtrace, "reach"),
    }


def shared(llm: Any) -> dict[str, Any]:
    """Return the worker's effective settings."""
    from torch._dynamo.utils import counters

    from swtrace.series.operations import numbered

    config = llm.llm_engine.vllm_config
    return {
        "additional_config": config.additional_config,
        "infos": [series.info for series in numbered()],
        "held_bytes": _held_bytes(llm),
        "touched": _touched(llm),
        "allowed": _allowed(llm),
        "graphs": counters["stats"]["unique_graphs"],
    }


def _allowed(llm: Any) -> list[str]:
    """Return the worker calls that touch the weights but are not refused with the right message."""
    from swtrace.errors import RefusedError
    from swtrace.vllm.engine import FORBIDDEN

    allowed = []
    for name in FORBIDDEN:
        try:
            llm.collective_rpc(name)
        except RefusedError as refused:
            if f"{name}: the weights of self_attn.o_proj are shared between ranks" in str(refused):
                continue
        allowed.append(name)
    return allowed


def loads() -> dict[str, str]:
    """Return why each load format that vLLM knows is refused."""
    from types import SimpleNamespace as Namespace

    from vllm.model_executor.model_loader import _LOAD_FORMAT_TO_MODEL_LOADER

    from swtrace.vllm.groups import Refused
    from swtrace.vllm.lifecycle import refuse_loading

    refused = {}
    for load_format in _LOAD_FORMAT_TO_MODEL_LOADER:
        try:
            refuse_loading(Namespace(load_config=Namespace(load_format=load_format)))
        except Refused as refusal:
            refused[load_format] = str(refusal)
    return refused


def readers() -> tuple[str, str]:
    """Return the reader of a linear that an attention absorbs after loading, and the reader of another linear."""
    import torch

    from swtrace.vllm.hooks import read_while_loading

    class Attention(torch.nn.Module):
        def __init__(self, absorbed: torch.nn.Module) -> None:
            super().__init__()
            self.kv_b_proj = absorbed

        def process_weights_after_loading(self, dtype: torch.dtype) -> None:
            """As MLA's."""

    layer: Any = torch.nn.Module()
    layer.kv_b_proj, layer.o_proj = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    layer.attention = Attention(layer.kv_b_proj)
    return read_while_loading(layer, layer.kv_b_proj), read_while_loading(layer, layer.o_proj)


def layer_lists() -> dict[str, str]:
    """Return the kind of the layers that are found in models with lists of their own, or the refusal."""
    from types import SimpleNamespace as Namespace

    import torch
    from vllm.model_executor.layers.linear import LinearBase

    from swtrace.vllm.groups import Refused
    from swtrace.vllm.layers import own_layers

    class Linear(LinearBase):  # type: ignore[misc]  # vLLM is absent where types are checked
        def __init__(self) -> None:
            torch.nn.Module.__init__(self)

    class Decoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.o_proj = Linear()

    class Tower(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.proj = Linear()

    class Model(torch.nn.Module):
        def __init__(self, **lists: tuple[type[torch.nn.Module], int]) -> None:
            super().__init__()
            for name, (kind, count) in lists.items():
                setattr(self, name, torch.nn.ModuleList(kind() for _ in range(count)))

    class Backed(Model):
        __module__ = "vllm.model_executor.models.transformers"

    config = Namespace(model_config=Namespace(get_total_num_hidden_layers=lambda: 3))

    def found(model: torch.nn.Module) -> str:
        try:
            return type(own_layers(model, config, ["o_proj"])[0]).__name__
        except Refused as refusal:
            return str(refusal)

    return {
        "one": found(Model(layers=(Decoder, 3))),
        "a tower before it": found(Model(vision=(Tower, 3), layers=(Decoder, 3), heads=(Decoder, 2))),
        "another linear": found(Model(layers=(Tower, 3))),
        "two": found(Model(fast=(Decoder, 3), slow=(Decoder, 3))),
        "none": found(Backed(layers=(Decoder, 4))),
    }


def poisoned(llm: Any) -> tuple[tuple[int, ...], ...]:
    """Return the tokens after the source of layer 1 has lost that layer's weight."""
    from vllm import SamplingParams

    from swtrace.series.operations import numbered

    (series,) = numbered()
    layer = series._circle._layers[1]  # type: ignore[union-attr]
    if layer.buffer is not None:
        layer.buffer.zero_()
        layer.remember_memory()  # or the series would report that the copy was overwritten
    sampling = SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True, detokenize=False)
    outputs = llm.generate([{"prompt_token_ids": [11, 7, 300, 42]}], sampling, use_tqdm=False)
    return tuple(tuple(output.outputs[0].token_ids) for output in outputs)


def overwritten(llm: Any) -> tuple[int, int, int, str]:
    """Overwrite a window once after its layer's wait. Return tag bytes, that layer, the layer it held, the error."""
    from swtrace.errors import StaleWindowError
    from swtrace.series.operations import numbered

    (series,) = numbered()
    circle: Any = series._circle
    layers: list[Any] = list(circle._layers.values())
    victim = next(layer for layer in layers[2:] if not layer.owned)
    intruder = next(layer for layer in layers if layer.owned)
    wait = series.wait
    done: list[bool] = []

    def wait_and_overwrite(layer_idx: int) -> None:
        wait(layer_idx)
        if layer_idx == victim.layer_idx and not done:
            done.append(True)
            victim.window.buffer.copy_(intruder.buffer)

    series.wait = wait_and_overwrite  # type: ignore[method-assign]
    said = ""
    for _ in range(2):
        try:
            _worker(llm).execute_dummy_batch()
        except StaleWindowError as error:
            said += str(error)
    return series.info.tag_bytes, victim.layer_idx, intruder.layer_idx, said


def outcome(llm: Any) -> tuple[dict[str, Any], str]:
    """Return the additional config and the class of the offloader."""
    from vllm.model_executor.offloader import get_offloader

    return llm.llm_engine.vllm_config.additional_config, type(get_offloader()).__name__


def interrupted(llm: Any) -> dict[str, Any]:
    """Make a forward fail midway, at a different layer on each rank. Return the tokens of the next request."""
    from vllm import SamplingParams

    from swtrace.series.operations import numbered

    class GivingUpError(Exception):
        """Raised by this test only."""

    def give_up(*_: Any, **__: Any) -> None:
        raise GivingUpError

    wrapper = _worker(llm)
    mlp = wrapper.worker.get_model().model.layers[2 + int(os.environ["RANK"])].mlp
    wrapper.execute_dummy_batch()
    mlp.forward, forward = give_up, mlp.forward
    died = False
    try:
        wrapper.execute_dummy_batch()
    except GivingUpError:
        died = True
    mlp.forward = forward
    sampling = SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True, detokenize=False)
    outputs = llm.generate([{"prompt_token_ids": [11, 7, 300, 42]}], sampling, use_tqdm=False)
    return {
        "died": died,
        "tokens": tuple(outputs[0].outputs[0].token_ids),
        "aborted_steps": numbered()[0].statistics().aborted_steps,
    }


def deserted(llm: Any) -> None:
    """Kill the second rank in the middle of a forward, and keep running the first."""
    wrapper = _worker(llm)
    if os.environ["RANK"] == "1":
        wrapper.worker.get_model().model.layers[3].mlp.forward = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
    while True:
        wrapper.execute_dummy_batch()


def _worker(llm: Any) -> Any:
    return llm.llm_engine.engine_core.engine_core.model_executor.driver_worker


def _touched(llm: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the decoder layers that swtrace makes reach, and those whose linear it makes wait."""
    layers = list(enumerate(_worker(llm).worker.get_model().model.layers))
    return (
        tuple(index for index, layer in layers if "forward" in vars(layer)),
        tuple(index for index, layer in layers if "apply" in vars(layer.self_attn.o_proj.quant_method)),
    )


def _held_bytes(llm: Any) -> int:
    """Return the bytes that the series' linears hold, counting each storage once."""
    storages = {
        parameter.untyped_storage().data_ptr(): parameter.untyped_storage().nbytes()
        for name, parameter in _worker(llm).worker.get_model().named_parameters()
        if ".o_proj." in name
    }
    return sum(storages.values())


def engine_config(model: Path, additional_config: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Return the additional config and the hash of a config that is made as in a server."""
    from vllm.engine.arg_utils import EngineArgs

    arguments = EngineArgs(
        model=str(model), skip_tokenizer_init=True, dtype="bfloat16", additional_config=additional_config
    )
    config = arguments.create_engine_config()
    return config.additional_config, config.compute_hash()


def refusals() -> dict[str, str]:
    """Return why engines are refused, each with one setting that rules out sharing."""
    from types import SimpleNamespace as Namespace

    from vllm.model_executor.offloader import NoopOffloader, UVAOffloader

    from swtrace.vllm.groups import Refused, refuse_engine

    def why(offloader: Any = None, **changes: Any) -> str:
        parts: dict[str, dict[str, Any]] = {
            "model": {"enable_sleep_mode": False, "is_encoder_decoder": False},
            "parallel": {"use_ubatching": False, "enable_elastic_ep": False},
            "load": {"load_format": "auto"},
            "compilation": {"inductor_compile_config": {}},
        }
        config = {f"{part}_config": Namespace(**{**values, **changes}) for part, values in parts.items()}
        weight_transfer = changes.get("weight_transfer_config")
        try:
            refuse_engine(Namespace(**config, weight_transfer_config=weight_transfer), offloader or NoopOffloader())
        except Refused as refusal:
            return str(refusal)
        return ""

    return {
        "nothing": why(),
        "offloading": why(offloader=object.__new__(UVAOffloader)),
        "ubatching": why(use_ubatching=True),
        "elastic": why(enable_elastic_ep=True),
        "sleep": why(enable_sleep_mode=True),
        "transfer": why(weight_transfer_config=object()),
        "sharded": why(load_format="sharded_state"),
        "encoder": why(is_encoder_decoder=True),
        "freezing": why(inductor_compile_config={"max_autotune": True}),
    }


def other_version(version: str) -> str:
    """Install the plugin in a vLLM of another version."""
    import vllm

    from swtrace.vllm.replacements import install

    vllm.__version__ = version
    install()
    return "vLLM goes on"


def seam_gone() -> str:
    """Remove a function of vLLM that the plugin needs, and install the plugin."""
    from vllm.model_executor.offloader import base

    from swtrace.vllm.replacements import install

    del base.create_offloader
    install()
    return "vLLM goes on"
