"""What a stage gets from pytest: the fixtures ``setting`` and ``table``, and a file of rows that a killed stage leaves.

A test fails if a row that it added fails, after all its rows are there. Whatever else ends a test becomes the stage's
reason; a run of pytest that came to its end ends well, for the verdict is in the rows.
"""

from pathlib import Path

import pytest

from cppo_verl.selftest.setting import SelftestError, Setting
from cppo_verl.selftest.table import Table

TABLE = pytest.StashKey[Table]()
STASHED = pytest.StashKey[Setting]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--setting", help="a Setting as JSON")
    parser.addoption("--rows", type=Path, help="the file of rows")


def pytest_configure(config: pytest.Config) -> None:
    setting = Setting.loads(config.getoption("setting"))
    config.stash[STASHED], config.stash[TABLE] = setting, Table(setting.stage, config.getoption("rows"))


@pytest.fixture(scope="session")
def setting(request: pytest.FixtureRequest) -> Setting:
    """What the selftest was asked for."""
    return request.config.stash[STASHED]


@pytest.fixture(scope="session")
def table(request: pytest.FixtureRequest) -> Table:
    """The stage's rows so far."""
    return request.config.stash[TABLE]


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function):
    table = pyfuncitem.config.stash[TABLE]
    before = len(table.failed())
    result = yield
    if found := table.failed()[before:]:
        pytest.fail("; ".join(found), pytrace=False)
    return result


def pytest_exception_interact(node: pytest.Item, call: pytest.CallInfo, report: pytest.TestReport) -> None:
    """A test, or what it stands on, raised: the first such error is the stage's reason."""
    error = call.excinfo.value if call.excinfo else None
    table = node.config.stash[TABLE]
    if error is None or isinstance(error, pytest.fail.Exception) or not table.reason.startswith("the stage did not"):
        return
    table.reason = str(error) if isinstance(error, SelftestError) else f"{type(error).__name__}: {error}"


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    table = session.config.stash[TABLE]
    if exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        if table.reason.startswith("the stage did not"):
            table.reason = ""
        session.exitstatus = pytest.ExitCode.OK
    table.save()
