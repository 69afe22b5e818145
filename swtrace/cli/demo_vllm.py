"""``swtrace demo-vllm``: run real vLLM on this machine's CPU, without and with sharing, and compare the tokens.

The tokens must be the same. Both runs use the same matmul kernel: without sharing, vLLM would pack
the linear's weight for oneDNN, whose rounding differs.
"""

from __future__ import annotations

import importlib.util
import secrets
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from swtrace.cli.arguments import whole_number
from swtrace.cli.child import DaemonProcess
from swtrace.cli.console import data, narration, write_json
from swtrace.cli.exit_codes import CommandError, ExitCode
from swtrace.cli.signals import exit_in_order
from swtrace.cli.summary_process import Reader
from swtrace.cli.summary_text import print_summary
from swtrace.errors import SettingsError

if TYPE_CHECKING:
    from rich.console import Console

    from swtrace.cli.summary import Summary
    from swtrace.cli.vllm_ranks import RankResult, Workload

SERIES = "self_attn.o_proj"


MAX_TOKENS = 240
"""What fits behind the longest prompt into vLLM's context of 256 tokens here."""


def _count(option: str, text: str, metavar: str, low: int, high: int | None = None) -> Any:
    return typer.Option(option, help=text, metavar=metavar, parser=whole_number(option, low, high))


def demo_vllm(
    *,
    layers: Annotated[int, _count("--layers", "Decoder layers of the random model.", "N", 2, 512)] = 12,
    hidden: Annotated[int, _count("--hidden", "Hidden size of the model, a multiple of 128.", "N", 128, 1024)] = 512,
    tokens: Annotated[int, _count("--tokens", "Tokens to generate for each prompt.", "N", 1, MAX_TOKENS)] = 48,
    prefetch_step: Annotated[int, _count("--prefetch-step", "How many layers ahead a broadcast starts.", "K", 0)] = 1,
    compiled: Annotated[
        bool, typer.Option("--compiled/--eager", help="Compile the model, as vLLM does by default.")
    ] = False,
    with_daemon: Annotated[
        bool, typer.Option("--daemon/--no-daemon", help="Start a daemon that serves metrics and a live API.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Run real vLLM on two CPU ranks, without and with sharing, and compare the tokens.

    Creates a tiny random Llama. Both ranks generate tokens from full copies of its weights, then again with
    `SWTRACE=1`, each holding `self_attn.o_proj` of half the layers. Needs a CPU build of vLLM, which `make demo-vllm`
    installs.
    """
    from swtrace.cli.vllm_ranks import TinyLlama, Workload, run_ranks, start_fork_server

    if hidden % 128:  # four heads, whose size vLLM's attention on CPUs takes in multiples of 32
        raise SettingsError.of("--hidden", str(hidden), "a multiple of 128")
    if prefetch_step > layers - 2:
        raise SettingsError.of("--prefetch-step", str(prefetch_step), f"at most {layers - 2} with --layers {layers}")
    if importlib.util.find_spec("vllm") is None:
        raise CommandError(
            "demo-vllm needs vLLM in this environment; `make demo-vllm` creates an environment that has it"
        )
    console = narration()
    exit_in_order()
    run_id = f"demo-vllm-{secrets.token_hex(3)}"
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="swtrace-demo-vllm-")))
        rings = folder / "rings"
        rings.mkdir(mode=0o700)
        console.print("Importing vLLM, which takes a while.")
        start_fork_server()
        model = TinyLlama(layers=layers, hidden=hidden)
        model.save(folder / "model")
        console.print(f"model: random Llama, {layers} layers of width {hidden}, bfloat16")
        workload = Workload(folder / "model", tokens=tokens, eager=not compiled, plain_linears=(SERIES,))
        console.print("1 of 2: two ranks without swtrace, each with all weights", highlight=False)
        control = run_ranks(workload, folder)

        reader = stack.enter_context(Reader(rings, run_id))
        daemon = stack.enter_context(DaemonProcess(rings)) if with_daemon else None
        environment = {
            "SWTRACE": "1",
            "SWTRACE_DIR": str(rings),
            "SWTRACE_PREFETCH_STEP": str(prefetch_step),
            "SWTRACE_RUN_ID": run_id,
            "SWTRACE_SERIES": SERIES,
            "SWTRACE_STRICT": "1",
        }
        console.print(f"2 of 2: the same two ranks with SWTRACE=1, sharing {SERIES}", highlight=False)
        shared = run_ranks(replace(workload, plain_linears=()), folder, environment=environment)
        url = _url(daemon, console)
        summary = reader.finish()
    equal = all(one.tokens == control[0].tokens for one in (*control, *shared))
    if as_json:
        write_json(_document(shared, summary, equal=equal, url=url))
    _report(workload, shared, summary, narration() if as_json else data(), equal=equal)
    raise typer.Exit(ExitCode.SUCCESS if equal else ExitCode.OUTPUT_DIFFERS)


def _url(daemon: DaemonProcess | None, console: Console) -> str | None:
    if daemon is None:
        return None
    daemon.poll()
    if daemon.url is not None:
        console.print(f"The daemon served {daemon.url}/metrics during the run.", soft_wrap=True)
    elif not daemon.alive:
        console.print("The daemon ended early. Its output:", *daemon.said, sep="\n  ", markup=False)
    return daemon.url


def _document(shared: tuple[RankResult, ...], summary: Summary, *, equal: bool, url: str | None) -> dict[str, object]:
    return {
        "tokens": [list(tokens) for tokens in shared[0].tokens],
        "tokens_equal": equal,
        "daemon_url": url,
        "summary": summary.to_json(),
    }


def _report(
    workload: Workload, shared: tuple[RankResult, ...], summary: Summary, console: Console, *, equal: bool
) -> None:
    for prompt, tokens in zip(workload.prompts, shared[0].tokens, strict=True):
        console.print(f"{' '.join(map(str, prompt))} -> {' '.join(map(str, tokens))}", soft_wrap=True, style="dim")
    count = sum(map(len, shared[0].tokens))
    if equal:
        console.print(f"{count} tokens on each rank: the same with and without SWTRACE=1.")
    else:
        console.print(f"[bold red]The {count} tokens differ from those without SWTRACE=1, or between the ranks.[/]")
    print_summary(summary, console)
