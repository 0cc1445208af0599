"""The data and model that the end-to-end tests share."""

from tests.e2e.conftest import work  # noqa: F401
