"""Whatever a folder is called, Hydra reads it back, and the scripts quote as the launcher does."""

import random
import subprocess

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from cppo_verl.errors import UserError
from cppo_verl.launch.quoting import quote
from tests import ROOT

ODD = [
    "a b", "lr=1e-4", "jörg", "李", "a,b", "it's", "(x)", "[1]", "#2", "~x", 'a"b', "a\\", "\\'", "{a}", "a:b", "null",
    "1",
]  # fmt: skip
LETTERS = "ab1 =,'\"()[]{}#~$\\:;@!&|<>?*%^`+-._äß李🎉\u0301\u200f\u00a0\t"


def odd_names(count: int = 500) -> list[str]:
    """Names that a folder may have, the same at every call."""
    chance = random.Random(0)
    return [*ODD, *("".join(chance.choices(LETTERS, k=chance.randint(1, 12))) for _ in range(count - len(ODD)))]


def test_hydra_reads_back_what_was_quoted():
    parser = OverridesParser.create()
    paths = [f"/data/{name}/x" for name in odd_names()]
    script = f"source '{ROOT}/run_scripts/quote.sh'; while IFS= read -r -d '' path; do quote \"$path\"; done"
    given = "\0".join([*paths, ""])
    said = subprocess.run(["bash", "-c", script], input=given, capture_output=True, text=True, check=True).stdout
    for name, path, in_bash in zip(odd_names(), paths, said.split("\n"), strict=False):
        assert parser.parse_override(f"key={in_bash}").value() == path
        if "${" in name:
            with pytest.raises(UserError, match="choose another path"):
                quote(path)
            continue
        for text in (path, name):
            override = parser.parse_override(f"key={quote(text)}")
            assert override.value() == text and not override.is_sweep_override()
            assert parser.parse_override(f"key=[{quote(text)},{quote(text)}]").value() == [text, text]
    assert quote("/home/me/runs/cppo-seed0_1.2") == "/home/me/runs/cppo-seed0_1.2"  # a plain path stays readable
