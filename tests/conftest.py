"""Names each failing test when it fails, not only at the end."""

from __future__ import annotations

import pytest


class FailedNames:
    """Writes one line for each failed test, also where the tests run in several processes."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        terminal = self._config.pluginmanager.get_plugin("terminalreporter")
        if report.failed and terminal is not None:  # the processes of xdist have no terminal
            terminal.write(f"\nFAILED {report.nodeid} ({report.when})\n", red=True)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(FailedNames(config))
