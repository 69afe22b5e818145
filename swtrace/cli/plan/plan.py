"""``swtrace plan [FILE]``: what other settings would cost and save, and which of them to use."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from swtrace import units
from swtrace.cli.arguments import (
    CaOption,
    CertOption,
    Force,
    KeyOption,
    PasswordFileOption,
    PhaseName,
    UserOption,
    credentials,
    exclusive,
    file_option,
    number,
    phase_option,
    refuse_existing,
    run_option,
    wait_option,
    whole_number,
)
from swtrace.cli.console import data, narration, write_json
from swtrace.cli.exit_codes import CommandError, ExitCode
from swtrace.cli.live import live
from swtrace.cli.plan.asked import bandwidth, budget, chosen_values
from swtrace.cli.recorded import WARMUP, FilesOrRings, Salvage, Steps, Warmup, step_range
from swtrace.cli.ring_folder import FolderOption
from swtrace.units import counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from swtrace.cli.plan.planning import Question
    from swtrace.cli.plan.series_plan import SeriesPlan
    from swtrace.cli.plan.source import Source

_TRY = "What to try (default: what fits the source)"
_ASSUME = "What to assume instead of what was measured"
_CHOOSE = "What to choose"
_MAX_RANKS = 4096


def plan(
    files: FilesOrRings = None,
    *,
    directory: FolderOption = None,
    connect: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT,...", help="Read through daemons, one per host, instead of local rings."),
    ] = None,
    profile: Annotated[
        Path | None,
        file_option("--profile", text="How fast the group's transport is, as written by `swtrace probe`."),
    ] = None,
    max_stall: Annotated[
        str | None,
        typer.Option(
            "--max-stall",
            help="Choose what saves most memory while it stalls for at most this share of step time, even at the upper "
            "end of the interval. Default: 5%, unless --memory is given.",
            metavar="PERCENT",
            rich_help_panel=_CHOOSE,
        ),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            "--memory",
            help="Choose the fastest that leaves at most this much of the weights on a rank, such as 4GiB. With "
            "--max-stall, choose what saves most within both.",
            metavar="SIZE",
            rich_help_panel=_CHOOSE,
        ),
    ] = None,
    share: Annotated[
        list[str] | None,
        typer.Option(
            "--share",
            help="Share these layers: all, a fraction such as 1/2, or layers such as layers:0-40:2. Can be repeated.",
            metavar="SHARE",
            rich_help_panel=_TRY,
        ),
    ] = None,
    prefetch_step: Annotated[
        str | None,
        typer.Option(
            "--prefetch-step",
            help="Prefetch steps, counted in shared or offloaded layers, such as 1,2,4. Default: 1 to 8.",
            metavar="K,...",
            rich_help_panel=_TRY,
        ),
    ] = None,
    transport: Annotated[
        str | None,
        typer.Option(
            "--transport",
            help="broadcast, pull or both, such as broadcast,pull.",
            metavar="NAME,...",
            rich_help_panel=_TRY,
        ),
    ] = None,
    windows: Annotated[
        str | None,
        typer.Option(
            "--windows",
            help="Window policies: static, rolling (eager execution only) or both.",
            metavar="POLICY,...",
            rich_help_panel=_TRY,
        ),
    ] = None,
    ranks: Annotated[
        int | None,
        typer.Option(
            "--ranks",
            help="A group of this size, in which a transfer takes as long as measured.",
            metavar="N",
            parser=whole_number("--ranks", 2, _MAX_RANKS),
            rich_help_panel=_ASSUME,
        ),
    ] = None,
    bytes_per_second: Annotated[
        str | None,
        typer.Option(
            "--bandwidth",
            help="Transfers that bring this much to each rank, such as 12GB/s or 100Gbit/s.",
            metavar="RATE",
            rich_help_panel=_ASSUME,
        ),
    ] = None,
    scale_compute: Annotated[
        float,
        typer.Option(
            "--scale-compute",
            help="Compute that takes this many times as long, as with another batch size or model.",
            metavar="FACTOR",
            parser=number("--scale-compute", 0.01, 1000),
            rich_help_panel=_ASSUME,
        ),
    ] = 1.0,
    series: Annotated[str | None, typer.Option(metavar="NAME", help="Plan only for this linear.")] = None,
    start_layer: Annotated[
        int | None,
        typer.Option(
            "--start-layer",
            metavar="N",
            help="Plan only for the pipeline stage that begins with this decoder layer.",
            parser=whole_number("--start-layer", 0),
        ),
    ] = None,
    run_id: Annotated[str | None, run_option("Plan from this run. Default: the newest.")] = None,
    phase: Annotated[PhaseName | None, phase_option("Only steps of this phase")] = None,
    steps: Steps = None,
    warmup: Warmup = WARMUP,
    salvage: Salvage = False,
    wait_s: Annotated[
        float,
        wait_option("With --connect: wait at most this long for every daemon."),
    ] = 5.0,
    ca: CaOption = None,
    user: UserOption = None,
    password_file: PasswordFileOption = None,
    cert: CertOption = None,
    key: KeyOption = None,
    html: Annotated[Path | None, file_option("--html", text="Also write an HTML page with all of it.")] = None,
    save: Annotated[
        Path | None,
        file_option(
            "--save",
            text="Also write the chosen plan, for SWTRACE_PLAN: the run then shows it beside what it measures.",
        ),
    ] = None,
    force: Force = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Predict what other settings would save and cost, and choose some, before you change anything.

    It reads steps that were measured: from a recording, from the rings of this host (the files in shared memory to
    which ranks write), or through daemons. From them it predicts step time, stall and memory for other shares of the
    layers, prefetch steps and transports, each with a 90 % interval. It prints those that no others beat, and the
    settings to copy.

    The run may share already. Or it only watches its linears (SWTRACE_SHARE=none); then pass --profile, with what
    `swtrace probe` measured. Or vLLM offloads layers to host memory (--offload-backend prefetch); then predictions are
    about its group size, number in group and prefetch step. They hold for the measured load.

    Settings without a prediction are counted below the table, with the reason. Exits with 1 if nothing can be
    predicted, or nothing is within --max-stall and --memory.
    """
    from swtrace.cli.plan.planning import Question, plans
    from swtrace.cli.plan.source import from_live, from_recording
    from swtrace.profile import Profile
    from swtrace.selection import Selection

    exclusive({"FILE": files or None, "--dir": directory, "--connect": connect})
    if salvage and not files:
        raise CommandError("--salvage needs a recording", ExitCode.USAGE)
    question = Question(
        budget=budget(max_stall, memory),
        values=chosen_values(share, prefetch_step, transport, windows),
        ranks=ranks,
        bandwidth=None if bytes_per_second is None else bandwidth(bytes_per_second),
        scale_compute=scale_compute,
        profile=None if profile is None else Profile.read(profile),
        series=series,
        start_layer=start_layer,
    )
    for output in (html, save):
        if output is not None:
            refuse_existing(output, force=force)
    selection = Selection(steps=step_range(steps), warmup=warmup, phase=phase)
    shown = credentials(connect, ca=ca, user=user, password_file=password_file, cert=cert, key=key)
    console = narration()
    with console.status("reading steps") as status:
        if files:
            source = from_recording(files, selection, run_id, salvage=salvage)
        else:
            name, origin = live(directory, connect, shown=shown)
            source = from_live(origin(), name, selection, run_id, wait_s=0.0 if connect is None else wait_s)
        made = plans(source, question, progress=status.update)
    if save is not None:
        _refuse_offloaded(made)
    for note in source.notes:
        console.print(note, markup=False, soft_wrap=True)
    _write(source, made, question, html=html, as_json=as_json)
    if save is not None:
        _save(made, save)
    _check(made, question, explicit=max_stall is not None or memory is not None)


def _write(source: Source, made: Sequence[SeriesPlan], question: Question, *, html: Path | None, as_json: bool) -> None:
    if as_json:
        from swtrace.cli.plan.document import document

        write_json(document(source, made, question))
    else:
        from swtrace.cli.plan.text import print_plans

        print_plans(source, made, question, data())
    if html is not None:
        from swtrace.cli.plan.page import page

        text = page(source, made, question).encode()
        html.write_bytes(text)
        narration().print(f"Wrote {units.size(len(text))} to {html}", soft_wrap=True, markup=False)


def _refuse_offloaded(made: Sequence[SeriesPlan]) -> None:
    """Refuse to write a plan that no run reads.

    Raises:
        CommandError: a plan is about layers that vLLM offloads.
    """
    if any(plan.info.offloaded for plan in made):
        raise CommandError(
            "--save writes a plan for ranks that share weights (SWTRACE_PLAN); for vLLM's offloading, pass vLLM the "
            "arguments that the command prints without --save",
            ExitCode.USAGE,
        )


def _save(made: Sequence[SeriesPlan], path: Path) -> None:
    """Write the chosen plan.

    Raises:
        CommandError: there is no plan, or more than one.
    """
    found = [each for each in (plan.plan_file() for plan in made) if each is not None]
    if len(found) > 1:
        names = ", ".join(f"{each.series} from layer {each.start_layer}" for each in found)
        raise CommandError(
            f"--save writes one plan, but there are {len(found)} ({names}); choose with --series and --start-layer",
            ExitCode.USAGE,
        )
    if not found:
        raise CommandError(f"there is no plan to write to {path}")
    found[0].write(path)
    narration().print(
        f"Wrote plan {found[0].digest} to {path}; run with SWTRACE_PLAN={path} to compare it with what is measured",
        soft_wrap=True,
        markup=False,
    )


def _check(made: Sequence[SeriesPlan], question: Question, *, explicit: bool) -> None:
    """Fail if there is nothing to act on.

    Raises:
        CommandError: nothing was predicted, or nothing is within the limits.
    """
    from swtrace.cli.plan import answer

    if not any(plan.predicted for plan in made):
        raise CommandError(f"nothing can be predicted; {question.remedy(made)}")
    without = [plan for plan in made if plan.chosen is None]
    if explicit and without:
        offloaded = without[0].info.offloaded
        of = "" if offloaded else f" for {counted(len(without), 'linear')}"
        options = "--prefetch-step" if offloaded else "--share and --prefetch-step"
        raise CommandError(
            f"nothing fits {answer.budget(without[0])}{of}; allow more, or try other values of {options}"
        )
