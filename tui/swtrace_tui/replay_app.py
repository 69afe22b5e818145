"""``swtrace replay`` and ``swtrace top --replay``: the terminal plays a recording.

Space pauses the recording, not only the screen. Further keys step, seek and change the speed.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from textual.binding import Binding, BindingType

from swtrace.observing import Link, Roster
from swtrace.observing.origin import Playhead
from swtrace.recording import Recording
from swtrace.recording.playback import Controls, Playback
from swtrace_tui.actions import OVERVIEW, Action
from swtrace_tui.app import TopApp
from swtrace_tui.bars import worst_link
from swtrace_tui.picture import Filter, Picture
from swtrace_tui.preferences import Configuration

_SEEK_S = 5.0
_ACTIONS = (
    Action("one-step", "n", "app.one_step", "One step", "Play one step, then pause.", footer=True),
    Action("forward", "ctrl+right", f"app.seek({_SEEK_S})", "Forward 5 s", "Go forward by 5 s.", footer=True),
    Action("back", "ctrl+left", f"app.seek(-{_SEEK_S})", "Back 5 s", "Go back by 5 s.", footer=True),
    Action("faster", "ctrl+up", "app.speed(1)", "Faster", "Play faster.", footer=True),
    Action("slower", "ctrl+down", "app.speed(-1)", "Slower", "Play slower.", footer=True),
    Action("start", "ctrl+home", "app.jump(0)", "Start", "Go to the start.", footer=True),
    Action("end", "ctrl+end", "app.jump(100)", "End", "Go to the end.", footer=True),
)


class ReplayApp(TopApp):
    """The application over a recording.

    Args:
        path: The recording, or its parts.
        configuration: Theme and keys.
        view: The view to open first.
        selection: What to show.
        salvage: Read around damage, and say how much is missing.
    """

    TITLE = "swtrace replay"
    BINDINGS: ClassVar[list[BindingType]] = [
        *TopApp.BINDINGS,
        *(Binding(action.keys, action.call, action.title, show=False, id=action.id) for action in _ACTIONS),
    ]
    OWN_ACTIONS: ClassVar[tuple[Action, ...]] = _ACTIONS
    OWN_HELP: ClassVar[dict[str, str]] = {"pause": "Play or pause the recording."}

    def __init__(
        self,
        path: list[Path],
        *,
        configuration: Configuration | None = None,
        view: str = OVERVIEW,
        selection: Filter | None = None,
        frame_s: float = 0.1,
        salvage: bool = False,
    ) -> None:
        self.controls = Controls()
        super().__init__(
            lambda: Roster(Playback(Recording.open(path, salvage=salvage), self.controls)),
            configuration=configuration,
            view=view,
            selection=selection,
            frame_s=frame_s,
        )

    @property
    def head(self) -> Playhead | None:
        """The shown position in the recording."""
        seen = self._observation
        return None if seen is None else seen.origins[0].playhead

    def action_pause(self) -> None:
        """Play or pause the recording, not only the screen."""
        self.controls.toggle()

    def action_seek(self, seconds: float) -> None:
        """Seek forward, or back if ``seconds`` is negative."""
        self.controls.seek_by(seconds)

    def action_speed(self, by: int) -> None:
        """Play faster, or slower if ``by`` is negative."""
        self.controls.faster(by)

    def action_one_step(self) -> None:
        """Play one step, then pause."""
        self.controls.step()

    def action_jump(self, percent: int) -> None:
        """Go to a position, in per cent of the recording."""
        self.controls.seek(percent / 100)

    def _note(self, shown: Picture) -> str:
        (origin, *_) = shown.observation.origins
        lost = worst_link(shown) is Link.LOST
        head = origin.playhead
        if lost or head is None:
            return origin.detail if lost else ""
        state = "END " if head.ended else "" if head.playing else "PAUSED "
        damage = f"{origin.detail}  " if origin.detail else ""
        return f"{damage}{state}x{head.speed:g} {head.at_ns / 1e9:.1f}/{head.length_ns / 1e9:.1f} s"
