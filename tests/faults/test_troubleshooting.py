"""docs/troubleshooting.md has every sentence with which checks, alarms, launcher and doctor stop or warn."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import ROOT

MODULES = (
    "cppo_verl/trust_region/knobs.py",
    "cppo_verl/trust_region/rules.py",
    "cppo_verl/trust_region/extensions.py",
    "cppo_verl/presets.py",
    "cppo_verl/launch/command_line.py",
    "cppo_verl/launch/sizes.py",
    "cppo_verl/launch/checkpoints.py",
    "cppo_verl/launch/supervise.py",
    "cppo_verl/trust_region/advantage.py",
    "cppo_verl/integration/checks.py",
    "cppo_verl/integration/rule_checks.py",
    "cppo_verl/integration/attention.py",
    "cppo_verl/integration/alarms.py",
    "cppo_verl/integration/config.py",
    "cppo_verl/integration/losses.py",
    "cppo_verl/integration/topk/__init__.py",
    "cppo_verl/integration/topk/logits.py",
    "cppo_verl/integration/cpu/limits.py",
    "cppo_verl/integration/cpu/vllm_plugin.py",
    "cppo_verl/doctor/inputs.py",
    "cppo_verl/doctor/machine.py",
    "cppo_verl/doctor/software.py",
    "cppo_verl/cli/run.py",
    "cppo_verl/cli/selftest.py",
    "cppo_verl/selftest/recipe_step.py",
    "cppo_verl/selftest/session.py",
    "cppo_verl/selftest/stack.py",
    "cppo_verl/selftest/watched_run.py",
    "data_prep/math_reward.py",
    "data_prep/model_folder.py",
    "data_prep/reasoning_gym_data.py",
    "data_prep/reasoning_gym_reward.py",
    "data_prep/smollm2.py",
    "data_prep/validations.py",
    "data_prep/warm_start.py",
    "data_prep/sources.py",
)
DOC = re.sub(r"\s+", " ", (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8"))


def pieces(node: ast.AST) -> list[str]:
    """Constant parts of the text that an expression builds."""
    if isinstance(node, ast.Constant):
        return [node.value] if isinstance(node.value, str) else []
    if isinstance(node, ast.JoinedStr):
        return [text for part in node.values for text in pieces(part)]
    if isinstance(node, ast.BinOp):
        return pieces(node.left) + pieces(node.right)
    return []


def sentences(path: Path) -> Iterator[tuple[int, str]]:
    """Line and longest constant part of each message that is raised, yielded or returned as a sentence."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        said: ast.AST | None = None
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
            said = node.exc.args[0]
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Yield) and path.name != "doctor.py":
            said = node.value.value
        elif isinstance(node, ast.Return) and path.name == "alarms.py":
            said = node.value
        longest = max(pieces(said), key=len, default="") if said is not None else ""
        if len(longest) > 12:
            yield node.lineno, re.sub(r"\s+", " ", longest).strip()


ALL = [(module, line, text) for module in MODULES for line, text in sentences(ROOT / module)]


@pytest.mark.parametrize(("module", "line", "text"), ALL, ids=[f"{module}:{line}" for module, line, _ in ALL])
def test_the_message_can_be_looked_up(module, line, text):
    assert text in DOC


def test_there_are_messages():
    assert len(ALL) > 50
