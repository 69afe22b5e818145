"""From measured steps to a plan for each series."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from swtrace.cli.exit_codes import CommandError, ExitCode
from swtrace.cli.plan.asked import Values
from swtrace.cli.plan.series_plan import SeriesPlan, conditions, phases
from swtrace.cli.plan.source import Source
from swtrace.errors import SettingsError
from swtrace.ledger.facts import SeriesFacts, StepFacts
from swtrace.ledger.planning import offload
from swtrace.ledger.planning.calibrate import calibrate
from swtrace.ledger.planning.candidates import PREFETCH_STEPS, SHARES, Axes
from swtrace.ledger.planning.pareto import Budget
from swtrace.ledger.planning.prediction import Candidate
from swtrace.profile import FAMILIES, Profile
from swtrace.trace.identity import SeriesInfo


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of a source."""

    budget: Budget
    values: Values
    ranks: int | None = None
    """Size of the group to assume; None: as measured."""
    bandwidth: float | None = None
    """Bytes per second to assume; None: as measured."""
    scale_compute: float = 1.0
    profile: Profile | None = None
    series: str | None = None
    start_layer: int | None = None

    def axes(self, info: SeriesInfo) -> Axes:
        """Return the values to combine for a series: by default the usual ones, and those of the run."""
        values = self.values
        static = ("static",) if info.windows != "rolling" else ("static", "rolling")
        return Axes(
            transports=values.transports or self._transports(info),
            ranks=self.ranks or len(info.group_ranks),
            shares=values.shares or SHARES,
            prefetch_steps=self.prefetch_steps(info),
            windows=values.windows or static,
        )

    def prefetch_steps(self, info: SeriesInfo) -> Sequence[int]:
        """Return the prefetch steps to try: by default the usual ones, and that of the run."""
        own = {info.prefetch_step} if info.shared else set()
        return self.values.prefetch_steps or sorted(own.union(PREFETCH_STEPS))

    def candidates(self, facts: SeriesFacts) -> list[Candidate]:
        """Return what to try for a series.

        Raises:
            CommandError: an option is meaningless for it, or nothing is left to try.
        """
        info = facts.ranks[0].info
        if info.offloaded:
            self._refuse_for_offloading(facts.key.name)
            made = list(offload.candidates(info, self.prefetch_steps(info)))
            needs = "at least 2 of {} layers must be offloaded, with a --prefetch-step below their number"
        else:
            axes = self.axes(info)
            if axes.ranks == 1:
                raise CommandError(
                    f"{facts.key.name} ran in a group of one rank; pass the number of ranks that would share it with "
                    "--ranks",
                    ExitCode.USAGE,
                )
            made = list(axes.candidates(info.start_layer, info.stack_layers))
            needs = (
                "share at least 3 of its {} layers, with a prefetch step of at most the number of shared layers minus 2"
            )
        if len(made) == 1:
            raise CommandError(
                f"nothing to try for {facts.key.name}: {needs.format(info.stack_layers)}", ExitCode.USAGE
            )
        return made

    def _refuse_for_offloading(self, name: str) -> None:
        """Refuse what says how ranks share layers.

        Raises:
            CommandError: such an option was given.
        """
        values = self.values
        given = {
            "--share": values.shares,
            "--transport": values.transports,
            "--windows": values.windows,
            "--ranks": self.ranks,
            "--profile": self.profile,
        }
        if 0 in (values.prefetch_steps or ()):
            raise SettingsError.of("--prefetch-step", "0", "at least 1 for layers that vLLM offloads")
        unfit = [option for option, value in given.items() if value is not None]
        if unfit:
            raise CommandError(
                f"{unfit[0]} is about layers that ranks share, but in series {name} vLLM offloads them by group; use "
                "--prefetch-step, --bandwidth or --scale-compute",
                ExitCode.USAGE,
            )

    def _transports(self, info: SeriesInfo) -> tuple[str, ...]:
        """Return the transports that the run or the profile used; all of them if neither says."""
        used = {info.kind} if info.shared else set()
        if self.profile is not None:
            used |= {timing.family for timing in self.profile.timings}
        return tuple(family for family in FAMILIES if family in used) or FAMILIES

    def remedy(self, made: Sequence[SeriesPlan]) -> str:
        """Return what to do if nothing can be predicted."""
        if all(plan.measured is None for plan in made):
            return "let the run finish more steps, or select more, and time every one (SWTRACE_TIME_EVERY=1)"
        if any(plan.info.offload is not None and not plan.info.offload.pinned for plan in made):
            return "let vLLM pin the host memory first; `swtrace diagnose` says how"
        if all(plan.info.offloaded for plan in made):
            return "record more steps, or steps of one kind (--phase), while the machine does nothing else"
        if any(not plan.info.shared for plan in made) and self.profile is None:
            return "measure the transport with `swtrace probe`, and pass its file with --profile"
        return (
            "record more steps, or steps of one kind (--phase), while the machine does nothing else; or watch the run "
            "without sharing (SWTRACE_SHARE=none) and pass what `swtrace probe` measured with --profile"
        )


def plans(source: Source, question: Question, *, progress: Callable[[str], None]) -> tuple[SeriesPlan, ...]:
    """Return the plan for each series that is asked about.

    Raises:
        CommandError: there is no such series.
    """
    wanted = [
        (facts, steps)
        for facts, steps in source.series
        if question.series in {None, facts.key.name} and question.start_layer in {None, facts.key.start_layer}
    ]
    if not wanted:
        has = ", ".join(f"{facts.key.name} from layer {facts.key.start_layer}" for facts, _ in source.series)
        raise CommandError(f"no such series in {source.name}; known are: {has}", ExitCode.USAGE)
    return tuple(_plan(facts, steps, source.model, question, progress) for facts, steps in wanted)


def _plan(
    facts: SeriesFacts,
    steps: tuple[StepFacts, ...],
    model: str,
    question: Question,
    progress: Callable[[str], None],
) -> SeriesPlan:
    info = facts.ranks[0].info
    candidates = question.candidates(facts)
    planner = calibrate(steps, question.profile, scale_compute=question.scale_compute, bandwidth=question.bandwidth)
    predictions = []
    if planner is not None:
        for number, candidate in enumerate(candidates, 1):
            progress(f"{facts.key.name}: predicting {number} of {len(candidates)}")
            predictions.append(planner.predict(candidate))
    return SeriesPlan(
        key=facts.key,
        info=info,
        conditions=conditions(info, steps, model, ranks=candidates[0].ranks, scale_compute=question.scale_compute),
        steps=len(steps),
        phases=phases(steps),
        budget=question.budget,
        measured=None if planner is None else planner.measured,
        predictions=tuple(predictions),
    )
