"""What the daemon says on stderr while something lasts: once a minute, not once per attempt."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

REPEAT_S = 60.0


class Seldom(logging.Filter):
    """Lets each message of a library through once a minute, whatever its arguments, and says how many it held back.

    An exporter whose collector is away would write a line per attempt, for hours.
    """

    def __init__(self, library: str, clock: Callable[[], float] = time.monotonic) -> None:
        """Apply to the loggers of ``library`` and leave all others alone."""
        super().__init__()
        self._library = library
        self._clock = clock
        self._said: dict[str, tuple[float, int]] = {}
        """By message template: when it was last said, and how often it was held back since."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether the record is said."""
        if record.name != self._library and not record.name.startswith(f"{self._library}."):
            return True
        now, template = self._clock(), str(record.msg)
        said, held_back = self._said.get(template, (-REPEAT_S, 0))
        if now - said < REPEAT_S:
            self._said[template] = (said, held_back + 1)
            return False
        if held_back:
            record.msg, record.args = f"{record.getMessage()} [{held_back} more like this in the last minute]", ()
        self._said[template] = (now, 0)
        return True
