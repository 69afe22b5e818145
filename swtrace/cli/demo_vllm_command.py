"""``swtrace demo-vllm``: the options; :mod:`swtrace.cli.demo_vllm` does the work."""

from __future__ import annotations

from typing import Annotated

import typer


def demo_vllm(
    *,
    layers: Annotated[int, typer.Option(help="Decoder layers of the random model.", metavar="N")] = 12,
    hidden: Annotated[int, typer.Option(help="Its width.", metavar="N")] = 512,
    tokens: Annotated[int, typer.Option(help="Tokens to generate for each prompt.", metavar="N")] = 48,
    prefetch_step: Annotated[int, typer.Option(help="How many layers ahead a broadcast starts.", metavar="K")] = 1,
    compiled: Annotated[bool, typer.Option("--compiled/--eager", help="Compile the model, as vLLM does.")] = False,
    with_daemon: Annotated[bool, typer.Option("--daemon/--no-daemon", help="Serve metrics and live API.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Write the result to stdout as JSON.")] = False,
) -> None:
    """Run real vLLM on two CPU ranks, without and with sharing, and compare the tokens.

    Makes a tiny random Llama. Both ranks generate the same tokens from full copies of its weights, and again with
    `SWTRACE=1`, each holding half of `self_attn.o_proj`. Needs a vLLM for CPU: `make demo-vllm` brings one.
    """
    from swtrace.cli.demo_vllm import run

    status = run(
        layers=layers,
        hidden=hidden,
        tokens=tokens,
        prefetch_step=prefetch_step,
        compiled=compiled,
        with_daemon=with_daemon,
        as_json=as_json,
    )
    raise typer.Exit(status)
