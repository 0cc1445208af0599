"""Knobs, ours and those of a rule from outside: their ranges, the errors, and the way through verl's ActorConfig."""

import math
from dataclasses import dataclass

import pytest
from omegaconf import OmegaConf
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.config import ActorConfig

from cppo_verl.integration.config import TrustRegionLossConfig, knobs_of
from cppo_verl.trust_region.knobs import KEY_PREFIX, KnobError, TrustRegionKnobs, knob, knob_names, limits_of


def test_defaults_are_the_papers_base_setting():
    knobs = TrustRegionKnobs()
    assert (knobs.divergence, knobs.estimator, knobs.topk) == ("tv", "binary", 20)
    assert (knobs.delta, knobs.delta_b, knobs.w_min) == (0.15, 0.02, 0.8)
    assert (knobs.weights, knobs.horizon, knobs.gate) == ("linear", "response", "hard")
    assert (knobs.budget, knobs.budget_quantile, knobs.budget_scale, knobs.budget_cap) == ("quantile", 0.9, 1.0, 2.0)
    assert knobs.ratio_cap == 20


@dataclass
class OwnKnobs(TrustRegionKnobs):
    grace: int = knob(2, low=0, high=9)
    on: bool = knob(True)
    free: object = None


BAD = [  # knob, value, what is said of it
    ("delta", 0.0, "is outside (0, 1]"),
    ("delta", 1.5, "is outside (0, 1]"),  # a total variation
    ("delta", True, "must be a number in (0, 1]"),
    ("delta", "0.15", "must be a number in (0, 1]"),
    ("delta", math.nan, "must be a number in (0, 1]"),
    ("delta", None, "must be a number in (0, 1]"),
    ("trace_cap", 0.99, "is outside [1, inf)"),
    ("trace_cap", 10**400, "must be a number in [1, inf)"),  # which no float holds
    ("budget_target", 1, "is outside (0, 1)"),
    ("budget_target", "x", "must be a number in (0, 1) or null"),
    ("budget", False, "is not one of none, fixed, quantile"),  # what YAML makes of an unquoted `no`
    ("topk", 2.5, "must be a whole number in [1, inf)"),
    ("shuffle_seed", "x", "must be a whole number"),
    ("grace", 10, "is outside [0, 9]"),
    ("on", 1, "must be true or false"),
]


@pytest.mark.parametrize(("name", "value", "said"), BAD)
def test_a_bad_knob_is_named_with_its_value_and_range(name: str, value: object, said: str):
    for make in (OwnKnobs, TrustRegionLossConfig) if name in knob_names() else (OwnKnobs,):
        with pytest.raises(KnobError) as caught:
            make(**{name: value})
        assert str(caught.value) == f"{KEY_PREFIX}.{name}={value!r} {said}."


def test_every_knob_has_a_range_and_a_meaning_and_all_that_are_bad_are_told_at_once():
    assert all(limits.doc for limits in limits_of().values())
    with pytest.raises(KnobError) as caught:
        TrustRegionKnobs(**dict.fromkeys(knob_names(), []))
    assert [line.split("=")[0] for line in str(caught.value).splitlines()] == [f"{KEY_PREFIX}.{n}" for n in limits_of()]


@pytest.mark.parametrize(
    "good",
    [
        {"delta": 1.0, "delta_b": 0.0, "w_min": 1.0, "budget_cap": 1, "budget_quantile": 0, "topk": 1},
        {"divergence": "kl", "delta": 3.5, "delta_b": 1.5, "shuffle_seed": -3},  # nats have no upper end
        {"budget_quantile": 1.0, "max_response_length": None, "budget_target": 0.5, "grace": 9, "free": "x"},
    ],
)
def test_the_ends_of_the_ranges_are_allowed(good: dict):
    knobs = OwnKnobs(**good)
    assert {name: getattr(knobs, name) for name in good} == good


# ---- through verl


def compose(policy_loss: dict) -> ActorConfig:
    """What the trainer does with actor_rollout_ref.actor."""
    actor = {
        "_target_": "verl.workers.config.FSDPActorConfig",
        "strategy": "fsdp",
        "rollout_n": 1,
        "use_dynamic_bsz": True,
        "policy_loss": policy_loss,
    }
    return omega_conf_to_dataclass(OmegaConf.create(actor))


OURS = {"_target_": "cppo_verl.integration.config.TrustRegionLossConfig", "loss_mode": "cppo"}
VERLS = {"_target_": "verl.workers.config.PolicyLossConfig", "loss_mode": "cppo"}


def test_knobs_arrive_through_actor_config():
    knobs = knobs_of(compose(OURS | {"delta": 0.3, "budget": "fixed", "max_response_length": 512}))
    assert isinstance(knobs, TrustRegionLossConfig)
    assert (knobs.loss_mode, knobs.delta, knobs.budget, knobs.max_response_length) == ("cppo", 0.3, "fixed", 512)
    assert knobs.get("loss_mode", "vanilla") == "cppo"  # how verl reads it
    with pytest.raises(Exception, match="detla"):
        compose(OURS | {"detla": 0.3})


def test_loss_mode_without_a_preset_is_refused_with_the_remedy():
    with pytest.raises(KnobError) as caught:
        knobs_of(compose(VERLS))
    message = str(caught.value)
    assert f"{KEY_PREFIX}.loss_mode='cppo'" in message and "+trust_region=" in message
    assert f"+{KEY_PREFIX}._target_={OURS['_target_']}" in message
    assert knobs_of(compose({"_target_": OURS["_target_"]})).loss_mode == "cppo"  # the remedy works
    with pytest.raises(KnobError):
        knobs_of(None)
