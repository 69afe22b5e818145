"""The advice of a view without data."""

from __future__ import annotations

import pytest

from swtrace.observing import Link, OriginStatus
from tests.support.scenes import Still, app_over, empty, run, shown, until


@pytest.mark.parametrize("width", [80, 100])
def test_a_long_folder_cuts_no_command_off(width: int) -> None:
    """A command that is wider than the screen continues in the next line, as a shell reads it."""
    folder = "/dev/shm/" + 44 * "x"

    async def test() -> None:
        app = app_over(Still(empty(OriginStatus(folder, Link.WAITING))))
        async with app.run_test(size=(width, 30)) as pilot:
            await until(pilot, lambda: "Nothing to watch yet." in shown(app))
            lines = "\n".join(line.strip() for line in shown(app).splitlines())
            assert f"SWTRACE_DIR={folder} swtrace demo --scenario stalled\n" in lines.replace(" \\\n", " ")

    run(test())


def test_a_source_that_has_not_answered_is_not_said_to_be_empty() -> None:
    """Until a daemon has reported its ranks, the screen says so, and not that it has none."""

    async def test() -> None:
        app = app_over(Still(empty(OriginStatus("host-a:9465", Link.CONNECTING))))
        async with app.run_test(size=(100, 30)) as pilot:
            await until(pilot, lambda: "host-a:9465 has not reported all its ranks." in shown(app))
            assert "No ring" not in shown(app)

    run(test())
