"""Text as one value of a Hydra override: a path may hold ``=``, commas, quotes, brackets, blanks, any letter."""

import re
from pathlib import Path

from cppo_verl.errors import UserError


def quote(value: str | Path) -> str:
    """The value as Hydra reads it back, a string in every case; a plain absolute path stays as it is.

    Raises:
        UserError: the text holds ``${``, which is an interpolation even in quotes.
    """
    text = str(value)
    if "${" in text:
        raise UserError(f"{text} holds '${{', which Hydra takes for a value of the config: choose another path.")
    if re.fullmatch(r"/[A-Za-z0-9_./-]*", text):
        return text
    # in quotes, a backslash counts only before a quote, the closing one included
    escaped = re.sub(r"(\\*)('|\Z)", lambda match: match[1] * 2 + ("\\'" if match[2] else ""), text)
    return f"'{escaped}'"
