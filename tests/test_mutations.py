"""What ``python -m tests.mutations`` breaks is still there to be broken."""

import pytest

from tests import ROOT
from tests.mutations import MUTATIONS


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_the_line_stands_once_and_its_tests_exist(mutation):
    assert (ROOT / mutation.file).read_text().count(mutation.line) == 1
    assert mutation.line != mutation.broken
    assert all((ROOT / file).is_file() for file in mutation.tests.split())
