"""The rooms of the package: every one is in the list of cppo_verl's docstring, and none imports one below it there."""

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import cppo_verl
from tests import ROOT, pages

PACKAGE = ROOT / "cppo_verl"
DOWNWARD = [room for line in re.findall(r"^    (\w[\w, ]*?)  ", cppo_verl.__doc__, re.M) for room in line.split(", ")]
FREE = ("__init__", "conf")  # what holds no code of its own: any room may read the version
# Packages that a process has to do without until it needs them, so that each room can be used alone
HEAVY = {"verl", "ray", "vllm", "tensordict", "transfer_queue"}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if "assets" not in path.parts)


def imported(tree: ast.AST) -> Iterator[str]:
    """Full names of what a module or a part of one imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are written in full"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def edges() -> dict[tuple[str, str], list[str]]:
    """(importing room, imported room) -> the modules that do it."""
    found: dict[tuple[str, str], list[str]] = {}
    for path in modules():
        for name in imported(parsed(path)):
            package, _, rest = name.partition(".")
            target = rest.partition(".")[0]
            if package == "cppo_verl" and (PACKAGE / target).exists() | (PACKAGE / f"{target}.py").exists():
                pair = room_of(path), target
                if pair[0] != pair[1]:
                    found.setdefault(pair, []).append(str(path.relative_to(PACKAGE)))
    return found


def test_the_list_is_complete():
    assert {room_of(path) for path in modules()} - set(FREE) == set(DOWNWARD)
    assert len(DOWNWARD) == len(set(DOWNWARD))


def test_nothing_imports_upward():
    found = edges()
    assert ("integration", "trust_region") in found  # or nothing is looked at
    upward = {pair: by for pair, by in found.items() if DOWNWARD.index(pair[1]) > DOWNWARD.index(pair[0])}
    assert not upward


def test_an_import_upward_would_be_seen(tmp_path, monkeypatch):
    (tmp_path / "trust_region").mkdir()
    (tmp_path / "cli").mkdir()
    (tmp_path / "trust_region/rules.py").write_text("def lazily():\n    from cppo_verl.cli import run\n")
    monkeypatch.setattr("tests.test_house.PACKAGE", tmp_path)
    assert edges() == {("trust_region", "cli"): ["trust_region/rules.py"]}


@pytest.mark.parametrize("path", [p for p in modules() if room_of(p) != "integration"], ids=lambda p: p.stem)
def test_only_the_plug_needs_verl_to_be_imported(path):
    """Elsewhere verl, Ray and vLLM are imported inside functions, if at all, or by what is a process of its own."""
    if "__main__" in path.read_text(encoding="utf-8"):
        return
    top = ast.Module([node for node in parsed(path).body if isinstance(node, (ast.Import, ast.ImportFrom))], [])
    assert not {name.partition(".")[0] for name in imported(top)} & HEAVY


def test_the_science_imports_torch_and_numpy_only():
    roots = {name.partition(".")[0] for p in modules() if room_of(p) == "trust_region" for name in imported(parsed(p))}
    standard = {"collections", "dataclasses", "functools", "math", "typing"}
    loading = {"importlib", "logging", "pathlib", "re", "socket", "sys", "traceback", "types"}  # extensions
    assert roots <= {"torch", "numpy", "cppo_verl", *standard, *loading}


# ---- the picture in docs/architecture.md


def rows() -> list[list[str]]:
    """The rooms of the picture, from the top row down."""
    text = pages.text("architecture.md").partition("## The rooms")[2]
    picture = re.search(r"^```text\n(.*?)^```$", text, re.M | re.S)
    assert picture is not None
    return [re.findall(r"[a-z_]{3,}", line) for line in picture[1].splitlines() if re.search(r"[a-z]", line)]


def test_the_picture_has_every_room_once_and_each_stands_on_what_it_imports():
    height = {room: -i for i, row in enumerate(rows()) for room in row}
    assert sorted(room for row in rows() for room in row) == sorted(DOWNWARD)
    assert not {pair: by for pair, by in edges().items() if height[pair[0]] <= height[pair[1]]}


def test_the_table_below_it_has_every_room():
    text = pages.text("architecture.md").partition("## The rooms")[2]
    first = re.findall(r"^\| (`.*?) \|", text, re.M)
    assert sorted(re.findall(r"`(\w+)`", " ".join(first))) == sorted(DOWNWARD)
