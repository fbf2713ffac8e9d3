"""`pytest --cpu-seconds`: what the tests cost, by file and by function.

A case costs the seconds of a core that its set-up, call and teardown took in this process and in the children that it
waited for. A fixture of a file or of the session counts for the case that made it. What other processes do at the same
time makes no difference, as it would to seconds of a clock. Collection, and starting Python, are not in the sums of
files but on a line of their own.

    pytest --cpu-seconds                       # the default tier
    pytest --cpu-seconds tests/estimator/test_laws.py    # one file
    pytest --cpu-seconds -n auto               # the same, by several processes
"""

from __future__ import annotations

import resource
from collections import defaultdict
from collections.abc import Iterator

import pytest

KEY = "cpu_seconds"
FUNCTION, CASE = 0.2, 1.0
"""Seconds from which a function and a case are printed."""


elsewhere = 0.0
"""Seconds of processes that others have waited for: those of support/processes.py."""


def cpu_seconds() -> float:
    """Seconds of a core, of this process and of the children that it waited for."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages) + elsewhere


class CpuSeconds:
    """Measures each phase of a case where it runs, and prints the sums where reports arrive."""

    def __init__(self) -> None:
        self._mark = cpu_seconds()
        self._collected: float | None = None
        self._cases: defaultdict[str, float] = defaultdict(float)

    def pytest_collection_finish(self) -> None:
        self._collected = cpu_seconds()

    def pytest_runtest_logstart(self) -> None:
        self._mark = cpu_seconds()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self) -> Iterator[None]:
        report = yield
        now = cpu_seconds()
        report.user_properties.append((KEY, now - self._mark))
        self._mark = now
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        # A report has the properties of the phases before it, too: each phase's own is the last.
        own = [value for name, value in report.user_properties if name == KEY]
        self._cases[report.nodeid] += own[-1] if own else 0.0

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        files: defaultdict[str, float] = defaultdict(float)
        functions: defaultdict[str, float] = defaultdict(float)
        counts: defaultdict[str, int] = defaultdict(int)
        for case, seconds in self._cases.items():
            function = case.split("[")[0]
            file = case.split("::")[0]
            files[file] += seconds
            functions[function] += seconds
            counts[file] += 1
            counts[function] += 1
        tables = (("file", files, 0.0), ("test function", functions, FUNCTION), ("case", self._cases, CASE))
        for title, sums, least in tables:
            terminalreporter.section(f"CPU seconds by {title}, and its cases")
            for name, seconds in sorted(sums.items(), key=lambda row: -row[1]):
                if seconds >= least:
                    terminalreporter.write_line(f"{seconds:9.2f}  {counts.get(name, 1):5d}  {name}")
        terminalreporter.write_line(f"{sum(files.values()):9.2f}  {len(self._cases):5d}  all cases")
        terminalreporter.write_line(f"{self._collected or 0:9.2f}         before the first case, in this process")
