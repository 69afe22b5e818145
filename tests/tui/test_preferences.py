"""The configuration file: what it changes, and what it cannot say."""

from __future__ import annotations

from pathlib import Path

import pytest
from swtrace_tui.preferences import Configuration, load

from tests.support.scenes import Still, app_over, observation_of, press, run, until
from tests.support.simulated_rings import scenario


def stalled() -> Still:
    return Still(observation_of(scenario("stalled")))


def test_keys_are_remapped_by_the_configuration(tmp_path: Path) -> None:
    """A key from the file replaces the built-in one."""
    path = tmp_path / "top.toml"
    path.write_text('theme = "swtrace-light"\n[keys]\npause = "z"\n')

    async def test() -> None:
        app = app_over(stalled(), configuration=load(path))
        async with app.run_test(size=(120, 40)) as pilot:
            await until(pilot, lambda: app.picture)
            assert app.theme == "swtrace-light"
            await press(pilot, "space")
            assert not app._paused
            await press(pilot, "z")
            assert app._paused

    run(test())


@pytest.mark.parametrize("text", ["keys = 1", "[keys]\nfly = 'x'", "colour = 'red'", "theme = 3", "= nonsense"])
def test_a_configuration_that_cannot_be_used_is_a_readable_error(tmp_path: Path, text: str) -> None:
    """An error in the file is reported with the file's name."""
    from swtrace.errors import SettingsError

    path = tmp_path / "top.toml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=r"top\.toml"):
        load(path)


def test_no_file_is_the_built_in_configuration(tmp_path: Path) -> None:
    """Without a file, theme and keys are the defaults, even if HOME is not a folder, as for many services."""
    assert load(tmp_path / "top.toml") == Configuration()
    assert load(Path("/dev/null/.config/swtrace/top.toml")) == Configuration()
