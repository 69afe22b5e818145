"""The plugin in a user's test suite: with any pytest, at no cost where it is unused, and in the examples."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.support.patience import patience

pytest_plugins = ["pytester"]


def old_pytest(suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, version: str, lacking: str) -> pytest.RunResult:
    """Run a suite with a plugin that was imported beside a pytest of some version, without what that one lacked."""
    suite.makepyfile(
        test_theirs="import pytest\n\ndef test_it(): pass\n",
        test_ours="import pytest\n\n@pytest.mark.swtrace(max_stall_ratio=1.0)\ndef test_it(): pass\n",
    )
    starter = suite.path / "starter.py"
    starter.write_text(
        f"import sys, pytest\nkept = vars(pytest).copy()\npytest.__version__ = {version!r}\n{lacking}\n"
        "import swtrace.testing.plugin\nvars(pytest).update(kept)\nsys.exit(pytest.main(sys.argv[1:]))\n"
    )
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # other plugins lack it, too
    return suite.run(sys.executable, starter, "-p", "swtrace.testing.plugin", timeout=patience())


def test_a_pytest_that_is_too_old_is_left_alone(suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """With pytest 6 every test runs as if swtrace were not installed, and one line says why."""
    result = old_pytest(suite, monkeypatch, "6.2.5", "del pytest.StashKey, pytest.Stash")
    result.assert_outcomes(passed=2)
    said = [line for line in result.outlines if "swtrace: the plugin is off" in line]
    assert len(said) == 1
    assert said[0].startswith("swtrace: the plugin is off: it needs pytest 7.0 or newer")


def test_a_pytest_without_new_style_wrappers_is_served(suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """With pytest 7.1, whose hooks know no `wrapper=True`, tests run, and the marker judges them."""
    lacking = """
theirs = pytest.hookimpl
def hookimpl(function=None, hookwrapper=False, optionalhook=False, tryfirst=False, trylast=False):
    return theirs(function, optionalhook=optionalhook, tryfirst=tryfirst, trylast=trylast)
pytest.hookimpl = hookimpl
"""
    result = old_pytest(suite, monkeypatch, "7.1.3", lacking)
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*no series recorded anything*"])


def test_the_plugin_costs_nothing_unused(suite: pytest.Pytester) -> None:
    """A suite that uses neither fixture nor marker loads nothing of swtrace but the plugin."""
    suite.makepyfile(
        """
import sys
def test_it():
    loaded = sorted(name for name in sys.modules if name.startswith("swtrace"))
    plugin = ("swtrace.testing" + name for name in ("", ".plugin", ".pytest_hooks"))
    assert loaded == ["swtrace", *plugin, "swtrace.version"], loaded
    assert not {"numpy", "torch", "opentelemetry", "prometheus_client"} & set(sys.modules)
"""
    )
    os.environ.pop("PYTEST_PLUGINS", None)
    arguments = ("-p", "no:hypothesispytest", "-p", "no:cacheprovider")
    suite.runpytest_subprocess(*arguments, timeout=patience()).assert_outcomes(passed=1)


def test_the_examples_pass_and_fail_as_they_say(suite: pytest.Pytester) -> None:
    """Of the examples one file passes; the other fails with a message that names value, limit, layer and reason."""
    examples = Path(__file__).parents[2] / "examples"
    done = suite.run(
        sys.executable,
        *("-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", examples),
        *("-c", os.devnull, "--runxfail", examples / "test_hidden.py", examples / "test_stalled.py"),
        timeout=patience(),
    )
    done.stdout.fnmatch_lines(
        [
            "swtrace: stall ratio 37.5 % is above 5.0 % on rank 0 of o_proj; 3 more broken limits below",
            "*:*: @pytest.mark.swtrace(min_efficiency=0.9, max_stall_ratio=0.05, series='o_proj', warmup=3)",
            "series o_proj, 27 steps after 3 warm-up steps",
            "rank     step    stall  stall ratio  efficiency  on time  broken limits",
            "   0  9.60 ms  3.60 ms       37.5 %      25.0 %    0.0 %  stall ratio 37.5 % is above 5.0 %; *",
            "layers that stall most, mean per step",
            "   1     10       0  0.60 ms           16.7 %  transfer",
            "verdict on these 27 steps",
            "- The most stalled rank (0) waits for weights 37.5 % of its step time *",
            "*Transfer 0.80 ms > compute 0.50 ms per layer: no prefetch step can hide this*",
            "1 failed, 2 passed*",
        ]
    )
