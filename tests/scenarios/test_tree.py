"""Tests are found without a search: those of ``swtrace/a/b.py`` are in ``tests/a/test_b.py``."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"
SOURCES = {"dashboards": "dashboards/source", "tui": "tui/swtrace_tui"}
"""Folders of modules that are not in ``swtrace``, by the folder of their tests."""
OTHER_FOLDERS = {"deploy", "gpu", "scenarios", "support"}
"""Folders of tests that no folder of modules corresponds to."""
OTHER_TESTS = {"dashboards/test_prometheus.py"}
"""Tests of files that are no modules."""
TESTED_THROUGH = {
    "dashboards/source/fleet.py": "dashboards/test_dashboards.py",
    "dashboards/source/health.py": "dashboards/test_dashboards.py",
    "dashboards/source/rank.py": "dashboards/test_dashboards.py",
    "swtrace/cli/console.py": "cli/test_streams.py",
    "swtrace/cli/demo/busy.py": "cli/demo/test_faults.py",
    "swtrace/cli/demo/demo_rank.py": "cli/demo/test_demo.py",
    "swtrace/cli/demo/launcher.py": "cli/demo/test_demo.py",
    "swtrace/cli/demo/links.py": "cli/demo/test_faults.py",
    "swtrace/cli/demo_vllm.py": "cli/test_vllm_ranks.py",
    "swtrace/cli/doctor/diagnosis.py": "cli/doctor/test_doctor.py",
    "swtrace/cli/plan/document.py": "cli/plan/test_plan.py",
    "swtrace/cli/plan/planning.py": "cli/plan/test_plan.py",
    "swtrace/cli/plan/source.py": "cli/plan/test_plan.py",
    "swtrace/cli/report.py": "report/test_page.py",
    "swtrace/closing.py": "recording/test_playback.py",
    "swtrace/daemon/snapshot.py": "daemon/test_observer.py",
    "swtrace/diagnosis/rule.py": "diagnosis/test_diagnosis.py",
    "swtrace/diagnosis/rules/launch.py": "scenarios/ledger/test_launches.py",
    "swtrace/diagnosis/rules/layers.py": "diagnosis/test_case.py",
    "swtrace/diagnosis/rules/plan.py": "ledger/test_comparison.py",
    "swtrace/errors.py": "cli/test_exit_codes.py",
    "swtrace/ledger/latest.py": "ledger/test_ledger.py",
    "swtrace/ledger/planning/calibrate.py": "cli/plan/test_plan.py",
    "swtrace/ledger/planning/prediction.py": "ledger/planning/test_pareto.py",
    "swtrace/ledger/planning/shared.py": "ledger/planning/test_planner.py",
    "swtrace/observing/events.py": "observing/test_roster.py",
    "swtrace/observing/observation.py": "observing/test_roster.py",
    "swtrace/report/digest.py": "report/test_page.py",
    "swtrace/report/svg_charts.py": "report/test_page.py",
    "swtrace/series/group.py": "series/test_communicator.py",
    "swtrace/series/probing/channels.py": "series/probing/test_probe.py",
    "swtrace/series/watched.py": "vllm/test_prefetch.py",
    "swtrace/vllm/passing.py": "vllm/test_prefetch.py",
    "swtrace/series/transport.py": "series/test_torch_transport.py",
    "swtrace/trace/identity.py": "trace/test_header.py",
    "swtrace/trace/records.py": "trace/test_ring_reader.py",
    "swtrace/version.py": "cli/test_commands.py",
    "swtrace/vllm/observing.py": "scenarios/vllm/test_observing.py",
}
"""Modules without tests of their own, and the tests that reach them. Keep this list short."""


def module_of(test: Path) -> Path:
    """Return the module that a test file is named after; a package's own story is ``tests/a/test_a.py``."""
    first, *rest = test.relative_to(TESTS).with_name(test.name.removeprefix("test_")).parts
    module = ROOT / SOURCES.get(first, f"swtrace/{first}")
    module = module.joinpath(*rest)
    if module.is_file():
        return module
    return module.parent / "__init__.py" if module.stem == test.parent.name else module.with_suffix("") / "__init__.py"


def modules_by_test() -> dict[Path, Path]:
    """Return the module of each test file, except in the folders that correspond to none."""
    return {
        test: module_of(test)
        for test in sorted(TESTS.rglob("test_*.py"))
        if test.relative_to(TESTS).parts[0] not in OTHER_FOLDERS and str(test.relative_to(TESTS)) not in OTHER_TESTS
    }


def test_a_test_file_is_named_after_a_module_or_is_a_scenario() -> None:
    """Outside ``tests/scenarios``, a test file has the name and the folder of the module that it tests."""
    assert not [
        f"{test.relative_to(ROOT)} needs {module.relative_to(ROOT)}"
        for test, module in modules_by_test().items()
        if not module.is_file()
    ]


def test_every_module_has_its_tests_or_says_which_reach_it() -> None:
    """A new module comes with a test file, and the list of those without one has no outdated entry."""
    tested = set(modules_by_test().values())
    folders = (ROOT / "swtrace", *(ROOT / source for source in SOURCES.values()))
    modules = {module for folder in folders for module in folder.rglob("*.py") if not module.name.startswith("__")}
    without = {str(module.relative_to(ROOT)) for module in modules - tested}
    assert without == set(TESTED_THROUGH)
    assert not [test for test in TESTED_THROUGH.values() if not (TESTS / test).is_file()]


def test_no_test_module_is_imported_by_another() -> None:
    """What two test files need is in ``tests/support``."""
    assert not [
        f"{file.relative_to(ROOT)}: {line}"
        for folder in ("tests", "benchmarks")
        for file in sorted((ROOT / folder).rglob("*.py"))
        for line in file.read_text(encoding="utf-8").splitlines()
        if line.startswith(("from tests.", "import tests.")) and ".test_" in line
    ]
