"""What a stage gets from pytest, in its own process: the fixtures ``setting`` and ``table``.

Verdicts are in the rows: pytest's own exit status is bad only when a test raised, and then there is a row of it too.
"""

import functools
import os

import pytest

from cppo_verl.selftest import table as tables
from cppo_verl.selftest.setting import Setting


@pytest.fixture(scope="session")
def setting() -> Setting:
    """What the selftest was asked for."""
    return Setting.loads(os.environ["CPPO_VERL_SELFTEST"])


@functools.cache
def _table() -> tables.Table:
    return tables.Table(Setting.loads(os.environ["CPPO_VERL_SELFTEST"]).logs / "rows.jsonl")


@pytest.fixture(scope="session")
def table() -> tables.Table:
    """The stage's rows so far."""
    return _table()


def pytest_exception_interact(node: pytest.Item, call: pytest.CallInfo) -> None:
    if call.excinfo is not None:
        _table().broke(node.name, call.excinfo.value)
