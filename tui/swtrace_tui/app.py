"""The application: one feed, one picture, five views."""

from __future__ import annotations

import asyncio
import os
import re
import select
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import ClassVar, TypeVar

from textual.app import App, ComposeResult, SystemCommand
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.screen import Screen
from textual.widgets import ContentSwitcher
from textual.worker import get_current_worker

from swtrace.diagnosis.diagnosis import Diagnosis, with_savings
from swtrace.errors import SettingsError
from swtrace.observing import Link, Observation, Roster
from swtrace_tui.actions import ACTIONS, DIAGNOSIS, HEAT_MAP, OVERVIEW, TIMELINE, VIEWS, WINDOWS, Action, bindings
from swtrace_tui.bars import KeyBar, Search, TitleBar, ViewBar, worst_link
from swtrace_tui.feed import Feed
from swtrace_tui.help import Help
from swtrace_tui.palette import BLOCKS, THEMES, palette_of, themes
from swtrace_tui.picture import Filter, Picture, picture
from swtrace_tui.preferences import Configuration
from swtrace_tui.views.diagnosis_view import DiagnosisView
from swtrace_tui.views.heat_map import HeatMap
from swtrace_tui.views.overview import Overview
from swtrace_tui.views.timeline import Timeline
from swtrace_tui.views.view import Scene, View
from swtrace_tui.views.windows import WindowsView

_Item = TypeVar("_Item")
_JUDGE_EVERY_S = 1.0
_TERMINAL_EVERY_S = 1.0
_SHELL_OFFSET = 128
_FONT_FACE = re.compile(r"\s*@font-face\s*\{[^}]*\}")
_FAMILY = "ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace"
_BOXES = {"▌": (0.0, 0.0, 0.5, 1.0), "▀": (0.0, 0.0, 1.0, 0.5), "▕": (7 / 8, 0.0, 1 / 8, 1.0)}
_BOXES |= {glyph: (0.0, 1 - eighths / 8, 1.0, eighths / 8) for eighths, glyph in enumerate(BLOCKS) if eighths}
"""Left, top, width and height of block glyphs, in parts of a cell."""
_BLOCK_TEXT = re.compile(
    rf'<text class="([^"]+)" x="([\d.]+)" y="([\d.]+)"[^>]*>((?:&#160;|[{"".join(_BOXES)}])+)</text>'
)
_CELL_WIDTH, _CELL_HEIGHT, _CELL_TOP = 12.2, 24.4, 18.5
"""Size of a cell in Rich's SVG, and how far its top is above the line of its text."""
_JUDGE_REST = 20
"""Keep a diagnosis for this many times the CPU time that it took: large series are judged less often."""


class Views(ContentSwitcher):
    """The views, of which one is open and fills the area."""

    BLANK = True


class MainScreen(Screen[None]):
    """The only screen besides help and palette; its keys work in every view."""

    BLANK = True
    BINDINGS: ClassVar[list[BindingType]] = bindings(None)

    def __init__(self, own: Sequence[Action], *, id: str) -> None:  # noqa: A002 - Textual's name for it
        super().__init__(id=id)
        self.title_bar, self.view_bar = TitleBar(), ViewBar()
        self.search, self.key_bar = Search(), KeyBar(own)
        self.views: tuple[View, ...] = (Overview(), HeatMap(), Timeline(), WindowsView(), DiagnosisView())
        self.switcher = Views(*self.views, initial=OVERVIEW)

    def compose(self) -> ComposeResult:
        """Yield two bars, the views, the search and the keys."""
        yield self.title_bar
        yield self.view_bar
        yield self.switcher
        yield self.search
        yield self.key_bar


class TopApp(App[None]):
    """``swtrace top``.

    Args:
        make_roster: Makes the roster to read; called in the feed's thread at the start and after each reattaching.
        configuration: Theme and keys.
        view: The view to open first.
        selection: What to show.
        frame_s: Shortest time between two pictures.
        ended: What the title bar says once all ranks have ended.
    """

    TITLE = "swtrace top"
    ENABLE_COMMAND_PALETTE = True
    OWN_ACTIONS: ClassVar[tuple[Action, ...]] = ()
    """Actions in addition to the registry's."""
    OWN_HELP: ClassVar[dict[str, str]] = {}
    """Help of the registry's actions that do something else here, by id."""
    # Ctrl-C quits, as in every terminal program; `y` copies.
    BINDINGS: ClassVar[list[BindingType]] = [Binding("ctrl+c", "quit", "Quit", show=False, priority=True)]
    CSS = """
    Screen { layout: vertical; background: $background; }
    ContentSwitcher { height: 1fr; }
    """

    class Arrived(Message):
        """The feed has a new observation."""

        def __init__(self, observation: Observation) -> None:
            super().__init__()
            self.observation = observation

    class Judged(Message):
        """A diagnosis was reached."""

        def __init__(self, selection: Filter, diagnosis: Diagnosis) -> None:
            super().__init__()
            self.selection, self.diagnosis = selection, diagnosis

    class Failed(Message):
        """The feed ended with an error."""

        def __init__(self, error: Exception) -> None:
            super().__init__()
            self.error = error

    def __init__(
        self,
        make_roster: Callable[[], Roster],
        *,
        configuration: Configuration | None = None,
        view: str = OVERVIEW,
        selection: Filter | None = None,
        frame_s: float = 0.1,
        ended: str = "RUN ENDED",
    ) -> None:
        super().__init__()
        self._make_roster = make_roster
        self._configuration = configuration or Configuration()
        self._first_view = view
        self._frame_s = frame_s
        self._ended = ended
        self._feed: Feed | None = None
        self._observation: Observation | None = None
        self._selection = selection or Filter()
        self._diagnosis: Diagnosis | None = None
        self._paused = False
        self._judge_at = 0.0
        for theme in themes():
            self.register_theme(theme)
        if self._configuration.theme not in self.available_themes:
            known = ", ".join((*THEMES, *sorted(self.available_themes.keys() - set(THEMES))))
            raise SettingsError(f"no theme {self._configuration.theme!r}; must be one of: {known}")
        self.theme = THEMES[-1] if self.no_color else self._configuration.theme

    # -- life ----------------------------------------------------------------------------------------

    def get_default_screen(self) -> Screen[None]:
        """Return the screen with the views."""
        return MainScreen(self.OWN_ACTIONS, id="_default")

    def on_ready(self) -> None:
        """Start to watch, now that the views exist."""
        if self._configuration.keys:
            self.set_keymap(self._configuration.keys)
        self.theme_changed_signal.subscribe(self, lambda _theme: self._show())
        self.action_show(self._first_view)
        self._watch()
        self.set_interval(_JUDGE_EVERY_S, self._judge)
        if not self.is_headless and not self.is_web:
            for number in (signal.SIGTERM, signal.SIGHUP):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    asyncio.get_running_loop().add_signal_handler(number, self._signalled, number)
            self.set_interval(_TERMINAL_EVERY_S, self._end_without_terminal)

    def on_unmount(self) -> None:
        """Stop reading the source."""
        if self._feed is not None:
            self._feed.stop()

    def _signalled(self, number: int) -> None:
        """Restore the terminal and exit with the status that a shell shows for the signal."""
        self.exit(return_code=_SHELL_OFFSET + number)

    def _end_without_terminal(self) -> None:
        """Exit once the terminal is gone: if SIGHUP is ignored nothing else reports it, and reading it would spin."""
        terminal = select.poll()
        terminal.register(sys.__stdin__, 0)  # type: ignore[arg-type]
        if any(events & (select.POLLHUP | select.POLLERR) for _, events in terminal.poll(0)):
            self.exit(return_code=_SHELL_OFFSET + signal.SIGHUP)

    @property
    def picture(self) -> Picture | None:
        """What is shown."""
        return None if self._observation is None else picture(self._observation, self._selection)

    def _watch(self) -> None:
        def deliver(observation: Observation) -> None:
            self.post_message(self.Arrived(observation))

        def failed(error: Exception) -> None:
            self.post_message(self.Failed(error))

        self._feed = Feed(self._make_roster, deliver, failed, frame_s=self._frame_s)
        self._feed.start()

    # -- messages -----------------------------------------------------------------------------------

    def on_top_app_arrived(self, message: Arrived) -> None:
        """Show an observation, unless paused or detached."""
        first = self._observation is None or not self._observation.history
        if not self._paused and self._feed is not None:
            self._observation = message.observation
            if first and message.observation.history:
                self._judge()
            self._show()
        # The next one may come once this is drawn: a slow terminal shows fewer frames, not older ones.
        self.call_after_refresh(self._taken)

    def on_top_app_judged(self, message: Judged) -> None:
        """Show a new diagnosis."""
        if message.selection == self._selection:
            self._diagnosis = message.diagnosis
            self._show()

    def on_top_app_failed(self, message: Failed) -> None:
        """Exit with the error: sources must not raise, so this is a bug."""
        raise message.error

    def on_view_open(self, message: View.Open) -> None:
        """Show a rank, or a cell, in the timeline."""
        timeline = self.screen.query_one(Timeline)
        self.action_show(TIMELINE)
        timeline.point_out(message.rank, message.position)

    async def on_key_bar_pressed(self, message: KeyBar.Pressed) -> None:
        """Do what the clicked key does."""
        await self._perform(message.action)

    def on_input_changed(self, message: Search.Changed) -> None:
        """Show the ranks that match what was typed so far."""
        if isinstance(message.input, Search):
            self._select(replace(self._selection, text=message.value.strip()))

    def on_input_submitted(self, message: Search.Submitted) -> None:
        """Return to the view; what was typed stays in force."""
        if isinstance(message.input, Search):
            self.action_show(self.view)

    def on_view_bar_chosen(self, message: ViewBar.Chosen) -> None:
        """Show the view that was clicked."""
        self.action_show(message.view)

    def _taken(self) -> None:
        if self._feed is not None:
            self._feed.taken()

    def _judge(self) -> None:
        if self._diagnosis is not None and self.view not in {OVERVIEW, DIAGNOSIS}:  # The other views show no findings.
            return
        if self._observation is not None and not self._paused and time.monotonic() >= self._judge_at:
            self._diagnose(self._observation, self._selection)

    def _diagnose(self, observation: Observation, selection: Filter) -> None:
        work = partial(self._judged, observation, selection, savings=self.view == DIAGNOSIS)
        # Without the decorator, which would build a description from the arguments' reprs.
        self.run_worker(work, thread=True, exclusive=True, description="diagnosis")

    def _judged(self, observation: Observation, selection: Filter, *, savings: bool) -> None:
        worker, before = get_current_worker(), time.thread_time()
        shown, said = picture(observation, selection), {}
        for series in shown.series:
            if worker.is_cancelled:
                return
            said[series.key] = with_savings(series.verdict, series.steps) if savings else series.verdict
        diagnosis = replace(shown.diagnosis, series=said)
        self._judge_at = time.monotonic() + _JUDGE_REST * (time.thread_time() - before)
        self.post_message(self.Judged(selection, diagnosis))

    def _show(self) -> None:
        shown = self.picture
        main = self._main
        if shown is None or main is None:
            return
        scene = Scene(shown, palette_of(self.current_theme), self._diagnosis)
        main.title_bar.show(scene, self._note(shown))
        main.view_bar.show(scene, self.view)
        main.key_bar.show(scene, self.view, self._configuration.keys, searching=main.search.has_class("open"))
        for view in main.views:
            view.show(scene)

    def _note(self, shown: Picture) -> str:
        if self._feed is None:
            return "DETACHED: D reattaches"
        if self._paused:
            return "PAUSED"
        if worst_link(shown) is Link.LOST:
            return next((origin.detail for origin in shown.observation.origins if origin.link is Link.LOST), "")
        return self._ended if shown.ended else ""

    # -- actions -------------------------------------------------------------------------------------

    @property
    def _main(self) -> MainScreen | None:
        return next((screen for screen in self.screen_stack if isinstance(screen, MainScreen)), None)

    @property
    def view(self) -> str:
        """The open view."""
        main = self._main
        return (main.switcher.current if main is not None else None) or OVERVIEW

    def action_show(self, view: str) -> None:
        """Open a view."""
        main = self._main
        if main is None:
            return
        main.switcher.current = view
        main.search.remove_class("open")
        # At once, unlike Widget.focus(): the next key, which may have arrived already, is one of this view.
        main.set_focus(main.query_one(f"#{view}", View))
        self._judge()
        self._show()

    def action_next_view(self, by: int) -> None:
        """Open the view ``by`` places further."""
        self.action_show(VIEWS[(VIEWS.index(self.view) + by) % len(VIEWS)])

    def action_pause(self) -> None:
        """Freeze the screen, or update it again."""
        self._paused = not self._paused
        self._show()

    def action_clear(self) -> None:
        """Clear the filter, and end a pause."""
        self._paused = False
        main = self._main
        if main is not None:
            with main.search.prevent(Search.Changed):
                main.search.value = ""
        self._select(Filter(run=self._selection.run))
        self.action_show(self.view)

    def action_search(self) -> None:
        """Ask for a text that ranks must match."""
        main = self._main
        if main is not None:
            main.search.add_class("open")
            main.set_focus(main.search)
            self._show()

    def action_cycle_series(self) -> None:
        """Narrow to the next series."""
        shown = self.picture
        if shown is not None:
            current = next((key for key in shown.all_series if self._selection.wants(key)), None)
            chosen = current if self._selection.series is not None else None
            self._select(replace(self._selection, series=_next(shown.all_series, chosen)))

    def action_cycle_rank(self) -> None:
        """Narrow to the next rank."""
        shown = self.picture
        if shown is not None:
            ranks = sorted({row.rank for row in picture(shown.observation, replace(self._selection, rank=None)).rows})
            self._select(replace(self._selection, rank=_next(ranks, self._selection.rank)))

    def action_cycle_phase(self) -> None:
        """Narrow to the next phase that the last steps have."""
        if self._observation is not None:
            seen = {step.common_phase for steps in self._observation.history.values() for step in steps}
            self._select(replace(self._selection, phase=_next(sorted(seen), self._selection.phase)))

    def action_cycle_run(self) -> None:
        """Show the next run."""
        shown = self.picture
        if shown is not None and shown.runs:
            at = shown.runs.index(shown.run) if shown.run is not None else -1
            self._select(Filter(run=shown.runs[(at + 1) % len(shown.runs)]))

    def _select(self, selection: Filter) -> None:
        if replace(selection, text="") != replace(self._selection, text=""):
            self._diagnosis = None
        self._selection = selection
        if self._observation is not None:
            self._diagnose(self._observation, selection)
        self._show()

    def action_copy_view(self) -> None:
        """Copy what the view shows."""
        main = self._main
        if main is not None:
            self.copy_to_clipboard(main.query_one(f"#{self.view}", View).as_text())
            self.notify("Copied, if this terminal supports OSC 52.", timeout=2)

    async def action_save_svg(self) -> None:
        """Save a screenshot in SWTRACE_SCREENSHOTS, or else in the working directory."""
        self.clear_notifications()
        await self.screen.query("Toast").remove()
        self.call_after_refresh(self._save_svg)

    def _save_svg(self) -> None:
        folder = Path(os.environ.get("SWTRACE_SCREENSHOTS") or Path.cwd())
        number = 1
        while (path := folder / f"swtrace-{self.view}-{number}.svg").exists():
            number += 1
        try:
            path.write_text(screenshot(self, f"swtrace top: {self.view}"), encoding="utf-8")
        except OSError as error:
            self.notify(
                f"Could not save the screenshot: {error}. SWTRACE_SCREENSHOTS sets the folder.", severity="error"
            )
            return
        self.notify(f"Saved {path}", timeout=4)

    def action_suspend_process(self) -> None:
        """Stop this process and those that it shares the terminal with, as Ctrl-Z does for other programs."""
        if self.is_headless or self.is_web or os.getpgrp() == os.getsid(0):
            self.notify("There is no shell to return to.", timeout=4)
        else:
            with self.suspend():  # First: once the others stop, the shell takes the terminal.
                # Textual's handlers would take effect only later, and might start its threads a second time.
                handlers = [
                    (number, signal.signal(number, signal.SIG_DFL)) for number in (signal.SIGTSTP, signal.SIGCONT)
                ]
                os.killpg(0, signal.SIGTSTP)
                for number, handler in handlers:
                    signal.signal(number, handler)

    def action_detach(self) -> None:
        """Stop reading the source, or start again."""
        if self._feed is not None:
            feed, self._feed = self._feed, None
            feed.stop()
        else:
            self._watch()
        self._show()

    def action_next_theme(self) -> None:
        """Switch to the next of our themes."""
        at = THEMES.index(self.theme) if self.theme in THEMES else -1
        self.theme = THEMES[(at + 1) % len(THEMES)]

    def action_help(self) -> None:
        """Show the help."""
        self.push_screen(
            Help(
                self._configuration.keys,
                self.OWN_ACTIONS,
                self.OWN_HELP,
                title=self.TITLE,
                palette=palette_of(self.current_theme),
            )
        )

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:
        """Offer every action by name, and Textual's themes."""
        for action in (*self.OWN_ACTIONS, *ACTIONS):
            where = f"{action.view}: " if action.view else ""
            help_ = self.OWN_HELP.get(action.id, action.help)
            yield SystemCommand(f"{where}{action.title}", help_, partial(self._perform, action))
        yield from (
            command for command in super().get_system_commands(screen) if command.title.lower().startswith("theme")
        )

    async def _perform(self, action: Action) -> None:
        main = self._main
        if main is None:
            return
        if action.view is not None:
            self.action_show(action.view)
            await self.run_action(action.call, main.query_one(f"#{action.view}", View))
        else:
            await self.run_action(action.call, main)


def _next(items: Iterable[_Item], current: _Item | None) -> _Item | None:
    """Return the item after ``current``; None after the last one."""
    choices = [*items, None]
    at = choices.index(current) if current in choices else -1
    return choices[(at + 1) % len(choices)] if current is not None else choices[0]


__all__ = ["DIAGNOSIS", "HEAT_MAP", "WINDOWS", "MainScreen", "TopApp"]


def screenshot(app: App[None], title: str) -> str:
    """Return the screen as a self-contained SVG: words stay text, and no font is downloaded."""
    svg = _FONT_FACE.sub("", app.export_screenshot(title=title))
    svg = svg.replace("Fira Code, monospace", _FAMILY).replace("font-family: Fira Code", f"font-family: {_FAMILY}")
    # Class and clip names contain a hash of the content; without it, equal pictures are equal files.
    return _BLOCK_TEXT.sub(_as_rectangles, re.sub(r"terminal-\d+", "terminal", svg)) + "\n"


def _as_rectangles(text: re.Match[str]) -> str:
    """Return rectangles instead of block glyphs, which most fonts draw shorter than a line."""
    style, x, y, glyphs = text.groups()
    column, drawn = 0, ""
    for glyph, run in groupby(glyphs.replace("&#160;", " ")):
        count = len(list(run))
        left, top, width, height = _BOXES.get(glyph, (0.0, 0.0, 1.0, 0.0))
        for cells in [count] if width == 1 else [1] * count:
            drawn += (
                f'<rect class="{style}" x="{float(x) + (column + left) * _CELL_WIDTH:.1f}" '
                f'y="{float(y) - _CELL_TOP + top * _CELL_HEIGHT:.2f}" width="{cells * width * _CELL_WIDTH:.1f}" '
                f'height="{height * _CELL_HEIGHT:.2f}" shape-rendering="crispEdges"/>'
            ) * (height > 0)
            column += cells
    return drawn
