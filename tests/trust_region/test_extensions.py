"""Rules from files and installed packages: they arrive once and checked, and leave nothing behind when they fail."""

from pathlib import Path

import pytest

from cppo_verl.trust_region import extensions, rules
from cppo_verl.trust_region.knobs import KnobError
from cppo_verl.trust_region.loss import policy_loss
from tests.helpers import random_batch

RULE = """
from cppo_verl.trust_region.gate import Verdict
from cppo_verl.trust_region.rules import rule

@rule({name!r})
def anything(tokens, divergence, knobs):
    return Verdict(tokens.mask, over_token=~tokens.mask)
"""


@pytest.fixture
def write(tmp_path: Path, registries):
    def write(name: str, source: str) -> str:
        path = tmp_path / f"{name}.py"
        path.write_text(source)
        return str(path)

    return write


def test_a_file_brings_its_rule_once(write):
    path = write("own", RULE.format(name="own"))
    module = extensions.load(path)
    assert extensions.load(path) is module
    assert extensions.from_outside() == {"own": module.__name__}
    batch = random_batch(seed=1, rows=3, width=5)
    loss, metrics = policy_loss("own", batch.log_prob, batch.old_log_prob, batch.advantages, batch.mask)
    assert loss.isfinite() and metrics["actor/trust_region/masked_share"] == 0


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("def rule(:", ["cannot be imported", "SyntaxError", "own.py, line 1"]),
        (RULE.format(name="own") + "\nraise RuntimeError('half-way')", ["RuntimeError: half-way", "own.py:9"]),
        (RULE.format(name="cppo"), ["a rule 'cppo' is there already", "cppo_verl.trust_region.rules", "another name"]),
        (RULE.format(name="own").replace("rule('own')", "rule('own', knobs=int)"), ["int", "no dataclass"]),
    ],
)
def test_a_file_that_fails_is_named_with_cause_and_leaves_nothing(write, source, words):
    before = dict(rules.RULES)
    path = write("own", source)
    for _ in range(2):  # the second time says the same
        with pytest.raises(KnobError) as refusal:
            extensions.load(path)
        for word in [f"policy_loss.rule_module={path}", *words]:
            assert word in str(refusal.value)
        assert before == rules.RULES


def test_a_name_that_the_module_does_not_define(write):
    path = write("own", RULE.format(name="own"))
    extensions.load(path)
    said = extensions.unknown_rule("onw", path)
    assert "loss_mode='onw' is not one of" in said and "cppo" in said and "cispo" in said
    assert f"{path} defines own: put @rule('onw') over the function" in said
    empty = write("empty", "")
    extensions.load(empty)
    assert f"{empty} defines no rule" in extensions.unknown_rule("onw", empty)


def install(folder: Path, name: str, module: str) -> None:
    """What pip leaves of a package with an entry point in our group."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[cppo_verl.rules]\n{name} = {module}\n")


def test_installed_packages(write, monkeypatch, tmp_path):
    write("good_own_rule", RULE.format(name="own"))
    write("bad_own_rule", RULE.format(name="dppo"))
    install(tmp_path, "good", "good_own_rule")
    install(tmp_path, "bad", "bad_own_rule")
    monkeypatch.syspath_prepend(str(tmp_path))
    extensions.bring("cppo", None)
    assert "own" not in rules.RULES  # nothing is imported for a rule that is there
    extensions.bring("own", None)
    assert "own" in rules.RULES and extensions.load("good_own_rule").__name__ == "good_own_rule"
    failed = extensions.load_installed()
    assert list(failed) == ["bad"]
    assert "a rule 'dppo' is there already" in failed["bad"]
    assert "The entry point bad could not be loaded: bad_own_rule: KnobError" in extensions.unknown_rule("odd", None)
