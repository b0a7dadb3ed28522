"""The table of what was compared, at the end of a run."""

from __future__ import annotations

import pytest

from tests.semantics.pairs import Coverage

_COVERAGE = pytest.StashKey[Coverage]()


@pytest.fixture(scope="session")
def coverage(pytestconfig: pytest.Config) -> Coverage:
    """Counts of the run."""
    return pytestconfig.stash.setdefault(_COVERAGE, Coverage())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Written by the reporter, so that it is in the log whatever the verbosity."""
    counted = config.stash.get(_COVERAGE, None)
    if counted is None or not counted.pairs:
        return
    terminalreporter.section("engine and oracle")
    for line in counted.table():
        terminalreporter.write_line(line)
