"""What a stage gets from pytest, in its own process: the fixtures ``setting`` and ``table``.

Verdicts are in the rows: pytest's own exit status is bad only when a test raised, and then there is a row of it too.
"""

import json
import os

import pytest

from cppo_verl.selftest.stage import Setting, Table

SETTING = Setting(**json.loads(os.environ["CPPO_VERL_SELFTEST"]))
TABLE = Table(SETTING.logs / "rows.jsonl")


@pytest.fixture(scope="session")
def setting() -> Setting:
    return SETTING


@pytest.fixture(scope="session")
def table() -> Table:
    return TABLE


def pytest_exception_interact(node: pytest.Item, call: pytest.CallInfo) -> None:
    if call.excinfo is not None:
        TABLE.broke(node.name, call.excinfo.value)
