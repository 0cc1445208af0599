"""The rooms of the package: every one is in the list of cppo_verl's docstring, and none imports one below it there."""

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import cppo_verl
from tests import ROOT, pages

PACKAGE = ROOT / "cppo_verl"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if "assets" not in path.parts)
DOWNWARD = [room for line in re.findall(r"^    (\w[\w, ]*?)  ", cppo_verl.__doc__, re.M) for room in line.split(", ")]
PICTURE, _, TABLE = pages.text("architecture.md").partition("## The rooms")[2].partition("| room |")
FREE = ("__init__", "conf")  # what holds no code of its own: any room may read the version
# Packages that a process has to do without until it needs them, so that each room can be used alone
HEAVY = {"verl", "ray", "vllm", "tensordict", "transfer_queue"}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(tree: ast.AST) -> Iterator[str]:
    """Full names of what a module or a part of one imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are written in full"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def edges() -> dict[tuple[str, str], list[str]]:
    """(importing room, imported room) -> the modules that do it."""
    found: dict[tuple[str, str], list[str]] = {}
    for path in MODULES:
        for name in imported(parsed(path)):
            package, _, rest = name.partition(".")
            target = rest.partition(".")[0]
            if package == "cppo_verl" and target in DOWNWARD and target != room_of(path):
                found.setdefault((room_of(path), target), []).append(str(path.relative_to(PACKAGE)))
    return found


def test_list_picture_and_table_have_every_room_once():
    rooms = sorted({room_of(path) for path in MODULES} - set(FREE))
    assert sorted(DOWNWARD) == rooms
    assert sorted(re.findall(r"[a-z_]{3,}", PICTURE.partition("```text")[2])) == rooms
    first = re.findall(r"^\| (`.*?) \|", TABLE, re.M)
    assert sorted(re.findall(r"`(\w+)`", " ".join(first))) == rooms


def test_nothing_imports_upward():
    """By the list; and in the picture each room stands above all that it imports."""
    found, lines = edges(), PICTURE.splitlines()
    assert ("integration", "trust_region") in found  # or nothing is looked at
    height = {room: -at for at, line in enumerate(lines) for room in re.findall(r"[a-z_]{3,}", line)}
    for (above, below), modules in found.items():
        assert DOWNWARD.index(below) < DOWNWARD.index(above) and height[above] > height[below], modules


def test_only_the_plug_needs_verl_to_be_imported():
    """Elsewhere verl, Ray and vLLM are imported inside functions, if at all, or by what is a process of its own."""
    for path in MODULES:
        if room_of(path) != "integration" and "__main__" not in path.read_text(encoding="utf-8"):
            top = [node for node in parsed(path).body if isinstance(node, (ast.Import, ast.ImportFrom))]
            assert not {name.partition(".")[0] for name in imported(ast.Module(top, []))} & HEAVY, path


def test_the_science_imports_torch_and_numpy_only():
    roots = {name.partition(".")[0] for p in MODULES if room_of(p) == "trust_region" for name in imported(parsed(p))}
    standard = {"collections", "dataclasses", "functools", "math", "typing"}
    loading = {"importlib", "logging", "os", "pathlib", "re", "socket", "sys", "traceback", "types"}  # extensions
    assert roots <= {"torch", "numpy", "cppo_verl", *standard, *loading}
