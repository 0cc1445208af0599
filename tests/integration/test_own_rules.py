"""A rule from outside through verl's own code: composed config, checks, verl's dataclass and registry, pickles.

As an installed package: tests/docs. Other processes and the stock command line: tests/e2e.
"""

import dataclasses

import cloudpickle
import pytest
from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.config import PolicyLossConfig

from cppo_verl import presets
from cppo_verl.integration import checks
from cppo_verl.integration.config import TrustRegionLossConfig
from cppo_verl.integration.losses import require_registered
from cppo_verl.trust_region.knobs import VERL_KEYS, names_from_outside
from tests import own_rule
from tests.helpers import random_batch, run_loss
from tests.integration.test_checks import GROUP_OF_8, KNOB, refused


def searched(folder) -> str:
    """Has Hydra look for presets there."""
    return f"hydra.searchpath=[{folder}]"


def composed(*overrides: str):
    return presets.compose("own", [GROUP_OF_8, "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=1", *overrides])


def actor_of(config):
    """As a worker makes it."""
    return omega_conf_to_dataclass(config.actor_rollout_ref.actor)


def is_there() -> bool:
    return "own" in POLICY_LOSS_REGISTRY


def test_a_file_reaches_each_process_that_makes_or_unpickles_the_config(tmp_path, registries):
    file = own_rule.write(tmp_path)
    own = searched(tmp_path), f"{KNOB}rule_module={file}"
    config = composed(*own, f"{KNOB}grace=0")
    assert not is_there()
    checks.require(config)  # the driver
    assert is_there()
    registries()
    assert not is_there()
    actor = actor_of(config)  # a worker
    assert is_there() and actor.policy_loss.grace == 0 and isinstance(actor.policy_loss, TrustRegionLossConfig)
    pickled = cloudpickle.dumps(actor)
    registries()
    assert cloudpickle.loads(pickled).policy_loss.grace == 0  # a process that is sent it
    require_registered("own")

    batch = random_batch(seed=4, rows=40, width=20)
    _, strict, reported = run_loss("own", batch, actor)
    _, loose, _ = run_loss("own", batch, actor_of(composed(*own, f"{KNOB}grace=9")))
    assert (strict == 0).sum() > (loose == 0).sum()  # its knob reaches it
    assert reported["actor/trust_region/masked_share"] > 0


@pytest.mark.parametrize(  # what is written in the rule's file and preset, what stands there instead, what is set
    ("name", "written", "otherwise", "override", "said"),
    [
        ("own", "", "", "graze=1", "graze=1 is no knob; there are"),
        ("own", "", "", "loss_mode=cppo", "has no effect under loss_mode=cppo; set loss_mode to its rule"),
        ("own", "grace", "ppo_kl_coef", "ppo_kl_coef=3", "key of verl's: give the knob of OwnKnobs another name"),
        ("own", "# @package _global_", "# mine", "delta=0.1", "to begin with the line '# @package _global_'"),
        ("gspo", "", "", "trace=1", "core_algos has a loss of that name; give yours another"),
    ],
)
def test_what_would_be_wrong_is_refused(tmp_path, registries, name, written, otherwise, override, said):
    verls = POLICY_LOSS_REGISTRY["gspo"]
    file = own_rule.write(tmp_path, name)
    for path in (file, tmp_path / f"trust_region/{name}.yaml"):
        path.write_text(path.read_text().replace(written, otherwise))
    assert said in refused(name, searched(tmp_path), f"++{KNOB}rule_module={file}", f"++{KNOB}{override}")
    assert POLICY_LOSS_REGISTRY["gspo"] is verls


def test_the_keys_of_verls_are_known_as_such():
    assert {each.name for each in dataclasses.fields(PolicyLossConfig)} <= VERL_KEYS
    ours = [each.name for each in dataclasses.fields(TrustRegionLossConfig)]
    assert names_from_outside([*ours, "grace"]) == ["grace"]
