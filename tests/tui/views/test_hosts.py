"""Lines of ranks under the headings of their hosts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from swtrace_tui.palette import MONO
from swtrace_tui.picture import Filter, Host, picture
from swtrace_tui.views.hosts import entries, heading, scrolled_to, visible

from tests.support.host_clocks import HostClock, Hosts
from tests.support.scenes import observation_across, on_two_hosts
from tests.support.simulated_rings import scenario


def three() -> tuple[Host, ...]:
    """Return hosts of one, three and two ranks."""
    hosts = Hosts(
        scenario("stalled", ranks=6, layers=6, steps=4),
        (1, 0, 1, 2, 2, 1),
        [HostClock(1000 * host) for host in (1, 2, 3)],
    )
    return picture(observation_across(hosts), Filter()).hosts


HOSTS = three()


@given(
    top=st.integers(0, 20),
    room=st.integers(2, 12),
    at=st.integers(0, 5),
    per_line=st.integers(1, 2),
)
def test_the_selected_rank_and_the_heading_above_it_are_visible(top: int, room: int, at: int, per_line: int) -> None:
    """However far the lines were scrolled, those shown include the selected one and begin with its host's heading."""
    lines = entries((), HOSTS, per_line)
    selected = [line for line in lines if line.rows][min(at, sum(bool(line.rows) for line in lines) - 1)]
    first = scrolled_to(lines.index(selected), top, room, lines)
    shown = visible(lines, first, room)
    assert len(shown) == min(room, len(lines))
    assert selected in shown
    assert not shown[0].rows
    above = [line for line in shown[: shown.index(selected)] if not line.rows]
    assert above[-1].host is selected.host


@given(per_line=st.integers(1, 2))
def test_a_line_never_mixes_hosts(per_line: int) -> None:
    """Lines of two ranks are of one host each, and every rank has a line."""
    lines = entries((), HOSTS, per_line)
    for line in lines:
        assert line.host is not None
        assert {row.host for row in line.rows} <= {line.host.name}
        assert len(line.rows) <= per_line
    assert sorted(row.rank for line in lines for row in line.rows) == list(range(6))


def test_a_heading_shows_what_there_is_room_for() -> None:
    """The bound of the clock is the last thing to go but the name and the number of ranks."""
    _, host = picture(observation_across(on_two_hosts(scenario("stalled"))), Filter()).hosts
    bound = host.clock.partition(" by ")[0]
    assert bound.startswith("clock ±")
    for width, words in (
        (80, f" host-1  2 ranks  {host.clock} ──"),
        (40, f" host-1  2 ranks  {bound} ──"),
        (24, " host-1  2 ranks ──"),
    ):
        text = heading(host, width, MONO).text
        assert text.startswith(words)
        assert len(text) == width
