"""Where commands read living ranks."""

from __future__ import annotations

from pathlib import Path

import pytest

from swtrace.cli.live import live
from swtrace.credentials import ANONYMOUS
from swtrace.errors import SettingsError
from swtrace.observing import HostRings
from swtrace.observing.merged import Merged


def test_a_source_is_the_rings_of_this_host_or_daemons(tmp_path: Path) -> None:
    """Its name says which."""
    name, rings = live(tmp_path, None, shown=ANONYMOUS)
    assert name == f"the rings in {tmp_path}"
    assert isinstance(rings(), HostRings)
    name, daemons = live(None, "a:1,b:2", shown=ANONYMOUS)
    origin = daemons()
    assert (name, isinstance(origin, Merged)) == ("a:1,b:2", True)
    origin.close()


def test_a_bad_address_is_refused_before_anything_is_opened() -> None:
    """So the error is not one of the thread that reads."""
    with pytest.raises(SettingsError):
        live(None, ",", shown=ANONYMOUS)
