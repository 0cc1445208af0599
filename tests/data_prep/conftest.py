"""The tiny model's tokenizer."""

import pytest

from data_prep import tiny_model


@pytest.fixture(scope="package")
def tokenizer():
    return tiny_model.build_tokenizer()
