"""Rules from files and installed packages: they arrive once and checked, and leave nothing behind when they fail."""

from pathlib import Path

import pytest

from cppo_verl.trust_region import extensions, rules
from cppo_verl.trust_region.knobs import KnobError
from cppo_verl.trust_region.loss import policy_loss
from tests import own_rule
from tests.helpers import random_batch

RULE = own_rule.RULE.format(name="own")


@pytest.fixture
def write(tmp_path: Path, registries):
    def write(name: str, source: str) -> str:
        path = tmp_path / f"{name}.py"
        path.write_text(source)
        return str(path)

    return write


def test_a_file_brings_its_rule_once(write):
    path = write("own", RULE)
    module = extensions.load(path)
    assert extensions.load(path) is module
    assert extensions.from_outside() == {"own": module.__name__}
    batch = random_batch(seed=1, rows=3, width=5)
    loss, _ = policy_loss("own", *vars(batch).values(), module.OwnKnobs(grace=1))
    assert loss.isfinite()


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("def rule(:", ["cannot be imported", "SyntaxError", "own.py, line 1"]),
        (RULE + "raise RuntimeError('half-way')", ["RuntimeError: half-way", "own.py:19"]),
        (own_rule.RULE.format(name="cppo"), ["a rule 'cppo' is there already", "trust_region.rules", "another name"]),
        (RULE.replace("knobs=OwnKnobs", "knobs=int"), ["int", "no dataclass"]),
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
    path = write("own", RULE)
    extensions.load(path)
    said = extensions.unknown_rule("onw", path)
    assert "loss_mode='onw' is not one of" in said and "cppo" in said and "cispo" in said
    assert f"{path} defines own: put @rule('onw') over the function" in said
    empty = write("empty", "")
    extensions.load(empty)
    assert f"{empty} defines no rule" in extensions.unknown_rule("onw", empty)


def test_installed_packages(registries, monkeypatch, tmp_path):
    own_rule.write_package(tmp_path, "good_own_rule")
    own_rule.write_package(tmp_path, "bad_own_rule", "dppo")
    monkeypatch.syspath_prepend(str(tmp_path))
    extensions.bring("cppo", None)
    assert "own" not in rules.RULES  # nothing is imported for a rule that is there
    extensions.bring("own", None)
    assert extensions.from_outside() == {"own": "good_own_rule.rule"}
    failed = extensions.load_installed()
    assert list(failed) == ["dppo"] and "a rule 'dppo' is there already" in failed["dppo"]
    assert "The entry point dppo could not be loaded: bad_own_rule.rule: Kn" in extensions.unknown_rule("odd", None)
