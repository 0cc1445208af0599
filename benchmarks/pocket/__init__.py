"""The paper's claims at pocket scale: tiny transformers, two verifiable tasks, the losses that verl has registered."""

from typing import Any

BINS = 8  # parts of a response in the curves by position
Row = dict[str, Any]  # a line of a CSV
