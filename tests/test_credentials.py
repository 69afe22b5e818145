"""Credentials of a daemon's clients: where they come from, and what is refused before anything is sent."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from swtrace.credentials import ANONYMOUS, VARIABLES, Credentials
from swtrace.errors import SettingsError
from swtrace.settings import unknown_variables
from tests.support.web_files import PASSWORD, WebFiles


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> WebFiles:
    """Certificates and a password file."""
    return WebFiles.make(tmp_path_factory.mktemp("credentials") / "web")


def test_without_settings_nothing_is_shown() -> None:
    """An empty environment, or empty variables, mean no credentials."""
    assert Credentials.from_environment(dict.fromkeys(VARIABLES.values(), " ")) == ANONYMOUS
    assert ANONYMOUS.authorization() is None


def test_options_win_over_variables(web: WebFiles) -> None:
    """An option replaces its variable; the other variables remain."""
    credentials = Credentials.from_environment(web.settings(), user="bob")
    expected = base64.b64encode(f"bob:{PASSWORD}".encode()).decode()
    assert credentials.authorization() == f"Basic {expected}"
    assert credentials.ca == web.folder / "ca.pem"


def test_the_password_is_read_again(tmp_path: Path) -> None:
    """A renewed password counts at the next connection; white space around it does not belong to it."""
    file = tmp_path / "password"
    file.write_text("old\n", encoding="utf-8")
    credentials = Credentials.from_environment({"SWTRACE_USER": "alice", "SWTRACE_PASSWORD_FILE": str(file)})
    file.write_text(" new \n", encoding="utf-8")
    assert credentials.authorization() == f"Basic {base64.b64encode(b'alice:new').decode()}"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"user": "alice"}, "--password-file (SWTRACE_PASSWORD_FILE) is missing"),
        ({"password_file": "password"}, "--user (SWTRACE_USER) is missing"),
        ({"user": "a:b", "password_file": "password"}, "must not contain a colon"),
        ({"user": "alice", "password_file": "none"}, "--password-file (SWTRACE_PASSWORD_FILE): {folder}/none: No such"),
        ({"user": "alice", "password_file": "empty"}, "{folder}/empty is empty"),
        ({"ca": "none"}, "--ca (SWTRACE_CA): {folder}/none: No such file"),
        ({"ca": "password"}, "{folder}/password: not a valid PEM file"),
        ({"cert": "ca.pem"}, "--cert (SWTRACE_CERT): {folder}/ca.pem: not a valid PEM file"),
        ({"cert": "client.pem", "key": "server.key"}, "the key does not belong to the certificate"),
        ({"key": "server.key"}, "--key (SWTRACE_KEY) needs --cert (SWTRACE_CERT)"),
    ],
)
def test_unusable_credentials_are_refused_at_once(web: WebFiles, options: dict[str, str], says: str) -> None:
    """A missing part or an unusable file is an error that names option, variable and file, and quotes no content."""
    (web.folder / "empty").touch()
    given = {field: text if field == "user" else web.folder / text for field, text in options.items()}
    with pytest.raises(SettingsError) as refused:
        Credentials.from_environment({}, **given)
    assert says.format(folder=web.folder) in str(refused.value)
    assert PASSWORD not in str(refused.value)


def test_no_variable_is_taken_for_a_misspelt_one() -> None:
    """The log of vLLM and the doctor know these variables."""
    assert unknown_variables(dict.fromkeys([*VARIABLES.values(), "SWTRACE_WEB_CONFIG"], "x")) == ()
