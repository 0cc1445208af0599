"""What ``@rule`` says of each rule is what the rule does."""

import itertools

import pytest
import torch

from cppo_verl.trust_region.knobs import TrustRegionKnobs, knob_names
from cppo_verl.trust_region.rules import RULES, VERL_LOSSES, capability, evaluate, knobs_of_rule
from tests.helpers import random_batch

OTHERS = {  # of each knob that a rule may read, values that change a decision somewhere
    "delta": {"delta": 0.3},
    "delta_b": {"delta_b": 0.05},
    "gate": {"gate": "soft"},
    "attenuation": {"attenuation": "sapo"},
    "restore_strength": {"restore_strength": 0.5},
    "budget": {"budget": "none"},
    "budget_quantile": {"budget_quantile": 0.5},
    "budget_scale": {"budget_scale": 0.5},
    "budget_cap": {"budget_cap": 1.0},
    "w_min": {"w_min": 0.3},
    "weights": {"weights": "constant"},
    "horizon": {"horizon": "max"},
    "max_response_length": {"max_response_length": 100},
    "shuffle_seed": {"shuffle_seed": 1},
}
BASES = [  # one knob only matters beside another
    {},
    {"gate": "soft"},
    {"gate": "restore"},
    {"weights": "shuffled"},
    {"delta": 0.02, "delta_b": 0.5},
    {"gate": "soft", "horizon": "max", "max_response_length": 40},
    {"gate": "soft", "delta_b": 0.001, "budget_cap": 500.0},
]


def gates(name: str, knobs: dict) -> torch.Tensor:
    batch = random_batch(seed=50, rows=80, width=20)
    thresholds = {"divergence": "kl", "delta": 0.1, "delta_b": 0.02} if capability(name).needs_kl else {}
    verdict, _ = evaluate(name, batch.tokens(), TrustRegionKnobs(**thresholds | knobs))
    return verdict.gate.double() * batch.mask


@pytest.mark.parametrize(("name", "knob"), list(itertools.product(sorted(RULES), OTHERS)))
def test_a_rule_reads_the_knobs_that_it_says(name: str, knob: str):
    changes = any(not torch.equal(gates(name, base), gates(name, base | OTHERS[knob])) for base in BASES)
    assert changes == (knob in capability(name).reads)
    assert (capability(name).gates == ("hard",)) == ("gate" not in capability(name).reads)


@pytest.mark.parametrize("name", sorted(RULES))
def test_the_weight_and_the_budget(name: str):
    batch = random_batch(seed=51, rows=80, width=20)
    verdict, _ = evaluate(name, batch.tokens(), TrustRegionKnobs(divergence="kl", delta=0.02, delta_b=0.002))
    assert (verdict.weight is not None) == capability(name).own_weight
    assert (verdict.prefix is not None) == capability(name).prefix_budget


def test_what_is_not_registered():
    assert capability("nowhere").reads == knob_names() and knobs_of_rule("nowhere") is TrustRegionKnobs
    for name in VERL_LOSSES:
        assert capability(name).own_weight and not capability(name).scales and not capability(name).reads
