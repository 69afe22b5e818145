"""What users write into the options of ``swtrace plan``."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from swtrace.cli.plan.asked import bandwidth, budget, chosen_values, percent
from swtrace.diagnosis.finding import HIDDEN_BELOW
from swtrace.errors import SettingsError
from swtrace.ledger.planning.pareto import Budget
from swtrace.share import Share


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("12GB/s", 12e9),
        ("800 MiB/s", 800 * 1024**2),
        ("100Gbit/s", 12.5e9),
        ("1.5kB/s", 1500.0),
        ("7B/s", 7.0),
    ],
)
def test_a_rate_has_a_unit(text: str, rate: float) -> None:
    """Decimal and binary bytes and bits are read as what they mean."""
    assert bandwidth(text) == rate


@pytest.mark.parametrize(
    ("read", "text", "says"),
    [
        (bandwidth, "12", "--bandwidth='12': must be a rate, such as 12GB/s"),
        (bandwidth, "12Gb/s", "--bandwidth='12Gb/s': must be a rate"),
        (bandwidth, "0GB/s", "--bandwidth='0GB/s': must be a rate"),
        (lambda text: budget(text, None), "2", "--max-stall='2': must be a percentage from 0% to 100%, such as 2%"),
        (lambda text: budget(text, None), "120%", "--max-stall='120%': must be a percentage"),
        (lambda text: budget(None, text), "4 bananas", "--memory='4 bananas': must be a size"),
        (lambda text: chosen_values([text], None, None, None), "2/1", "--share='2/1': must be all, none, a fraction"),
        (lambda text: chosen_values(None, text, None, None), "1,x", "--prefetch-step='x': must be a whole number"),
        (lambda text: chosen_values(None, None, text, None), "auto", "--transport='auto': must be one or more of"),
        (lambda text: chosen_values(None, None, None, text), "", "--windows='': must be one or more of"),
    ],
)
def test_an_unusable_value_is_quoted_with_what_it_must_be(read: Callable[[str], object], text: str, says: str) -> None:
    """Each option refuses what it cannot read, and says how to write it."""
    with pytest.raises(SettingsError, match=f"^{re.escape(says)}"):
        read(text)


def test_values_are_read_as_lists() -> None:
    """Several values make several candidates, each once."""
    values = chosen_values(["1/2", "layers:0-40:2"], "4, 1,4", "pull,broadcast", None)
    assert values.shares == (Share.parse("1/2"), Share.parse("layers:0-40:2"))
    assert (values.prefetch_steps, values.transports, values.windows) == ((4, 1), ("pull", "broadcast"), None)


def test_without_a_limit_the_stall_must_count_as_hidden() -> None:
    """The default limit is what the verdict calls hidden; a limit on memory replaces it."""
    assert budget(None, None) == Budget(stall_ratio=HIDDEN_BELOW)
    assert budget(None, "4GiB") == Budget(memory_bytes=4 << 30)
    assert budget("2 %", "4GiB") == Budget(stall_ratio=0.02, memory_bytes=4 << 30)
    assert percent("2.5%", "--max-stall") == 0.025
