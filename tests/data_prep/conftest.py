"""The tiny model's tokenizer, and one thread for what trains it."""

import pytest
import torch

from data_prep import tiny_model


@pytest.fixture(scope="package", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="package")
def tokenizer():
    return tiny_model.build_tokenizer()
