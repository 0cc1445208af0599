"""A rule from outside through verl's own code: composed config, checks, verl's dataclass and registry, pickles.

Other processes and the stock command line: tests/e2e.
"""

import dataclasses
import pickle

import cloudpickle
import pytest
from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.config import PolicyLossConfig

from cppo_verl import presets
from cppo_verl.integration import checks, hydra_check
from cppo_verl.integration.config import TrustRegionLossConfig
from cppo_verl.integration.losses import require_registered
from cppo_verl.trust_region.knobs import VERL_KEYS, names_from_outside
from tests import own_rule
from tests.helpers import random_batch, run_loss

KNOB = "actor_rollout_ref.actor.policy_loss."


def composed(*overrides: str, preset: str = "own"):
    always = ["actor_rollout_ref.rollout.n=8", "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=1"]
    return presets.compose(preset, [*always, *overrides])


def actor_of(config):
    """As a worker makes it."""
    return omega_conf_to_dataclass(config.actor_rollout_ref.actor)


def is_there() -> bool:
    return "own" in POLICY_LOSS_REGISTRY


def test_a_file_reaches_each_process_that_makes_or_unpickles_the_config(tmp_path, registries):
    file = own_rule.write(tmp_path)
    own = f"hydra.searchpath=[{tmp_path}]", f"{KNOB}rule_module={file}"
    config = composed(*own, f"{KNOB}grace=0")
    assert not is_there()
    checks.require(config)  # the driver
    assert is_there()
    registries()
    assert not is_there()
    actor = actor_of(config)  # a worker
    assert is_there() and actor.policy_loss.grace == 0 and isinstance(actor.policy_loss, TrustRegionLossConfig)
    for dump in (pickle.dumps, cloudpickle.dumps):
        pickled = dump(actor)
        registries()
        assert pickle.loads(pickled).policy_loss.grace == 0  # a process that is sent it
        assert is_there()
        require_registered("own")

    batch = random_batch(seed=4, rows=40, width=20)
    _, strict, reported = run_loss("own", batch, actor)
    _, loose, _ = run_loss("own", batch, actor_of(composed(*own, f"{KNOB}grace=9")))
    assert (strict == 0).sum() > (loose == 0).sum()  # its knob reaches it
    assert reported["actor/trust_region/masked_share"] > 0


def test_an_installed_package_needs_no_more_than_its_preset(tmp_path, registries, monkeypatch):
    own_rule.write_package(tmp_path, "package_with_own_rule")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "own" in presets.names() and "base" not in presets.names()
    config = composed()
    checks.require(config)
    registries()
    actor = actor_of(config)
    assert actor.policy_loss.grace == 3 and is_there()


def test_a_file_beside_its_preset_becomes_an_absolute_path(tmp_path, registries):
    import hydra

    file = own_rule.write(tmp_path)
    with hydra.initialize_config_module("verl.trainer.config", version_base=None):
        overrides = [f"hydra.searchpath=[{tmp_path}]", "+trust_region=own", "actor_rollout_ref.rollout.n=8"]
        overrides.append("++actor_rollout_ref.model.override_config.attn_implementation=sdpa")
        config = hydra.compose("ppo_trainer", overrides, return_hydra_config=True)
    assert config.actor_rollout_ref.actor.policy_loss.rule_module == "own.py"
    hydra_check.StartCheck().on_run_start(config)
    assert config.actor_rollout_ref.actor.policy_loss.rule_module == str(file)


def refused(tmp_path, *overrides: str, preset: str = "own") -> str:
    with pytest.raises(checks.RunConfigError) as refusal:
        checks.require(composed(f"hydra.searchpath=[{tmp_path}]", *overrides, preset=preset))
    return str(refusal.value)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (KNOB + "grace=-1", ["grace=-1 is outside [0, inf)"]),
        ("+" + KNOB + "graze=1", ["graze=1 is no knob", "grace"]),
        (KNOB + "loss_mode=cppo", ["rule_module=", "has no effect under loss_mode=cppo", "set loss_mode to its rule"]),
        (KNOB + "loss_mode=onw", ["loss_mode='onw' is not one of", "defines own"]),
        (KNOB + "rule_module=/nowhere.py", ["rule_module=/nowhere.py cannot be imported", "No such file"]),
    ],
)
def test_what_would_be_wrong_is_refused(tmp_path, registries, override, words):
    said = refused(tmp_path, f"{KNOB}rule_module={own_rule.write(tmp_path)}", override)
    assert [word for word in words if word not in said] == []


@pytest.mark.parametrize(
    ("suffix", "old", "new", "said"),
    [
        (".yaml", "# @package _global_", "# mine", "has to begin with the line '# @package _global_'"),
        (".py", "grace", "ppo_kl_coef", "ppo_kl_coef is a key of verl's: give the knob of OwnKnobs another name"),
    ],
)
def test_a_file_that_is_wrong_is_refused(tmp_path, registries, suffix, old, new, said):
    rule = own_rule.write(tmp_path)
    file = rule if suffix == ".py" else tmp_path / "trust_region/own.yaml"
    file.write_text(file.read_text().replace(old, new))
    assert said in refused(tmp_path, *([f"{KNOB}rule_module={rule}"] if suffix == ".py" else []))


def test_a_name_of_verls_is_refused(tmp_path, registries):
    file = own_rule.write(tmp_path, "gspo")
    verls = POLICY_LOSS_REGISTRY["gspo"]
    said = refused(tmp_path, f"{KNOB}rule_module={file}", preset="gspo")
    assert "core_algos has a loss of that name; give the rule another name" in said
    assert POLICY_LOSS_REGISTRY["gspo"] is verls


def test_the_keys_of_verls_are_known_as_such():
    assert {each.name for each in dataclasses.fields(PolicyLossConfig)} <= VERL_KEYS
    ours = [each.name for each in dataclasses.fields(TrustRegionLossConfig)]
    assert names_from_outside([*ours, "grace"]) == ["grace"]


def test_unpickled_knobs_of_ours_are_what_they_were():
    knobs = TrustRegionLossConfig(loss_mode="cppo", delta=0.2)
    again = pickle.loads(pickle.dumps(knobs))
    assert again == knobs and type(again) is TrustRegionLossConfig
