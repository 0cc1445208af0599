"""Knobs: their ranges, the errors, and the way through verl's ActorConfig."""

import dataclasses
import math

import pytest
from omegaconf import OmegaConf
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.config import ActorConfig, PolicyLossConfig

from cppo_verl.integration.config import TrustRegionLossConfig, knobs_of
from cppo_verl.trust_region.knobs import KEY_PREFIX, KnobError, TrustRegionKnobs, knob_names
from tests.helpers import actor_config


def test_defaults_are_the_papers_base_setting():
    knobs = TrustRegionKnobs()
    assert (knobs.divergence, knobs.estimator, knobs.topk) == ("tv", "binary", 20)
    assert (knobs.delta, knobs.delta_b, knobs.w_min) == (0.15, 0.02, 0.8)
    assert (knobs.weights, knobs.horizon, knobs.gate) == ("linear", "response", "hard")
    assert (knobs.budget, knobs.budget_quantile, knobs.budget_scale, knobs.budget_cap) == ("quantile", 0.9, 1.0, 2.0)
    assert knobs.ratio_cap == 20


# knob, bad value, what the message must say is allowed
BAD = [
    ("w_min", 0, "(0, 1]"),
    ("w_min", 1.01, "(0, 1]"),
    ("w_min", -0.5, "(0, 1]"),
    ("delta", -0.1, "(0, 1]"),
    ("delta", 0.0, "(0, 1]"),
    ("delta", 1.5, "(0, 1]"),  # a total variation
    ("delta", True, "(0, 1]"),
    ("delta", "0.15", "(0, 1]"),
    ("delta", math.nan, "(0, 1]"),
    ("delta", None, "(0, 1]"),
    ("delta_b", -0.01, "[0, 1]"),
    ("delta_b", 1.2, "[0, 1]"),
    ("budget_quantile", 1.1, "[0, 1]"),
    ("budget_quantile", -0.1, "[0, 1]"),
    ("budget_cap", 0.99, "[1, "),
    ("budget_cap", math.nan, "[1, "),
    ("budget_scale", 0, "(0, "),
    ("ratio_cap", 0.5, "[1, "),
    ("divergence", "hellinger", "tv, kl"),
    ("divergence", None, "tv, kl"),
    ("estimator", "full", "binary, topk"),
    ("weights", "cosine", "linear, constant, shuffled"),
    ("horizon", "batch", "response, max"),
    ("horizon", 1024, "response, max"),
    ("budget", "adaptive", "none, fixed, quantile"),
    ("budget", False, "none, fixed, quantile"),  # what YAML makes of an unquoted `no`
    ("gate", "medium", "hard, soft, restore"),
    ("restore_strength", 0, "(0, 1]"),
    ("restore_strength", 1.5, "(0, 1]"),
    ("restore_strength", "full", "(0, 1]"),
    ("trace", 0, "at least 1"),
    ("trace", 1.5, "whole number"),
    ("trace", True, "whole number"),
    ("trace_cap", 0.9, "[1, "),
    ("trace_cap", math.inf, "[1, "),
    ("attenuation", "exp", "inverse, sapo"),
    ("topk", 0, "at least 1"),
    ("topk", 2.5, "whole number"),
    ("topk", True, "whole number"),
    ("shuffle_seed", "x", "whole number"),
    ("max_response_length", 0, "at least 1"),
    ("max_response_length", 10.0, "whole number"),
]


@pytest.mark.parametrize(("name", "value", "allowed"), BAD)
def test_a_bad_knob_is_named_with_its_value_and_range(name: str, value: object, allowed: str):
    for make in (TrustRegionKnobs, TrustRegionLossConfig):
        with pytest.raises(KnobError) as caught:
            make(**{name: value})
        message = str(caught.value)
        assert f"{KEY_PREFIX}.{name}={value!r}" in message
        assert allowed in message
        assert "\n" not in message


def test_every_bad_knob_is_reported_at_once():
    with pytest.raises(KnobError) as caught:
        TrustRegionKnobs(w_min=0, topk=0, weights="cosine")
    assert [name in str(caught.value) for name in ("w_min", "topk", "weights", "delta")] == [True, True, True, False]


@pytest.mark.parametrize(
    "good",
    [
        {"delta": 1.0, "delta_b": 0.0, "w_min": 1.0, "budget_cap": 1, "ratio_cap": 1},
        {"divergence": "kl", "delta": 3.5, "delta_b": 1.5},  # nats have no upper end
        {"budget_quantile": 0, "topk": 1, "max_response_length": 1, "shuffle_seed": -3},
        {"budget_quantile": 1.0, "max_response_length": None, "delta": 1},
    ],
)
def test_the_ends_of_the_ranges_are_allowed(good: dict):
    knobs = TrustRegionKnobs(**good)
    assert {name: getattr(knobs, name) for name in good} == good


def test_knob_names_are_the_fields():
    assert knob_names() == tuple(f.name for f in dataclasses.fields(TrustRegionKnobs))
    assert {"delta", "delta_b", "w_min", "weights", "budget", "gate", "ratio_cap"} <= set(knob_names())


def test_no_knob_hides_one_of_verls():
    assert not set(knob_names()) & {f.name for f in dataclasses.fields(PolicyLossConfig)}


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


def test_knobs_arrive_through_actor_config():
    knobs = knobs_of(compose(OURS | {"delta": 0.3, "budget": "fixed", "max_response_length": 512}))
    assert isinstance(knobs, TrustRegionLossConfig)
    assert (knobs.loss_mode, knobs.delta, knobs.budget, knobs.max_response_length) == ("cppo", 0.3, "fixed", 512)
    assert knobs.get("loss_mode", "vanilla") == "cppo"  # how verl reads it


def test_a_bad_knob_stops_verls_config_by_name():
    with pytest.raises(Exception, match=rf"{KEY_PREFIX}\.w_min=0 is outside \(0, 1\]"):
        compose(OURS | {"w_min": 0})


def test_an_unknown_knob_is_refused_by_name():
    with pytest.raises(Exception, match="detla"):
        compose(OURS | {"detla": 0.3})
    with pytest.raises(Exception, match="delta"):
        compose({"_target_": "verl.workers.config.PolicyLossConfig", "loss_mode": "cppo", "delta": 0.3})


def test_loss_mode_without_a_preset_is_refused_with_the_remedy():
    for actor in (
        compose({"_target_": "verl.workers.config.PolicyLossConfig", "loss_mode": "cppo"}),
        ActorConfig(strategy="fsdp", rollout_n=1, use_dynamic_bsz=True, policy_loss=PolicyLossConfig(loss_mode="cppo")),
    ):
        with pytest.raises(KnobError) as caught:
            knobs_of(actor)
        message = str(caught.value)
        assert f"{KEY_PREFIX}.loss_mode='cppo'" in message
        assert "+trust_region=" in message
        assert f"+{KEY_PREFIX}._target_={OURS['_target_']}" in message
    with pytest.raises(KnobError):
        knobs_of(None)


def test_the_remedy_in_the_message_works():
    assert knobs_of(compose({"_target_": OURS["_target_"]})).loss_mode == "cppo"


def test_knobs_cannot_be_changed_behind_the_check():
    config = actor_config()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.policy_loss.delta = -1
