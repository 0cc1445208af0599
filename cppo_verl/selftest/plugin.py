"""What a stage gets from pytest, in its own process: the fixtures ``setting`` and ``table``.

Verdicts are in the rows: pytest's own exit status is bad only when a test raised, and then there is a row of it too.
"""

import os

import pytest

from cppo_verl.selftest.setting import Setting
from cppo_verl.selftest.table import Table

SETTING = pytest.StashKey[Setting]()
TABLE = pytest.StashKey[Table]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[SETTING] = setting = Setting.loads(os.environ["CPPO_VERL_SELFTEST"])
    config.stash[TABLE] = Table(setting.logs / "rows.jsonl")


@pytest.fixture(scope="session")
def setting(request: pytest.FixtureRequest) -> Setting:
    """What the selftest was asked for."""
    return request.config.stash[SETTING]


@pytest.fixture(scope="session")
def table(request: pytest.FixtureRequest) -> Table:
    """The stage's rows so far."""
    return request.config.stash[TABLE]


def pytest_exception_interact(node: pytest.Item, call: pytest.CallInfo) -> None:
    if call.excinfo is not None:
        node.config.stash[TABLE].broke(node.name, call.excinfo.value)
