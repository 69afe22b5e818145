"""Actions and their keys are unambiguous."""

from __future__ import annotations

from swtrace_tui.actions import ACTIONS, VIEWS


def test_ids_and_keys_of_actions_are_unambiguous() -> None:
    """No id is used twice, and within a view no key has two actions."""
    assert len({action.id for action in ACTIONS}) == len(ACTIONS)
    everywhere = [key for action in ACTIONS if action.view is None for key in action.keys.split(",")]
    for view in (None, *VIEWS):
        own = [key for action in ACTIONS if action.view == view and view for key in action.keys.split(",")]
        assert len(set(everywhere + own)) == len(everywhere) + len(own), view
