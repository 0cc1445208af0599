import os

import pytest


@pytest.fixture(autouse=True, scope="session")
def home(tmp_path_factory):
    """verl's default paths begin with ``~`` and Ray keeps a token there; tests/launch and the stack do without."""
    with pytest.MonkeyPatch.context() as patch:
        if os.path.expanduser("~") == "~":
            patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        yield
