"""Which groups have nothing to teach, under verl's own estimators; which rows stay, by hand and by properties."""

import itertools

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from verl.trainer.ppo import core_algos

from cppo_verl import presets
from cppo_verl.integration import estimator, skip

OTHERS = ["gae", "reinforce_plus_plus", "reinforce_plus_plus_baseline", "remax", "gdpo", "optimal_token_baseline"]


def advantages(name: str, keys: list[str], rewards: list[float]) -> torch.Tensor:
    """Of verl's own function, (rows,): one token a response, its reward there."""
    index = np.array([skip.split(key)[0] for key in keys], dtype=object)
    config = presets.compose("cppo").algorithm
    more = {"config": config} if name != "grpo" else {}
    function = core_algos.get_adv_estimator_fn(name)
    found, _ = function(torch.tensor(rewards)[:, None], torch.ones(len(keys), 1), index=index, **more)
    return found[:, 0]


KEYS = [f"{uid}_{sample}_0" for uid in "abc" for sample in range(7)]
REWARDS = [0.7] * 7 + [0.0, 2.0, 0.0, 0.0, 1.0, 1.0, 0.0] + [-1.0] * 7


@pytest.mark.parametrize("name", skip.GROUPED)
def test_a_group_of_equal_rewards_has_no_advantage_under_any_group_estimator(name):
    found, flags = advantages(name, KEYS, REWARDS), skip.zero_variance(KEYS, REWARDS, name)
    assert flags == [True] * 7 + [False] * 7 + [True] * 7
    assert found[flags].abs().max() < 0.07 < found[[not flag for flag in flags]].abs().max()  # 0.06: rounding of 0.7


@pytest.mark.parametrize(("name", "alone"), [("group_relative", True), ("grpo", False)])
def test_a_response_that_is_alone(name, alone):
    assert (advantages(name, ["a_0_0"], [1.0]) == 0) == alone
    assert skip.zero_variance(["a_0_0"], [1.0], name) == [alone]


def test_an_output_is_no_member_of_the_group():
    """Four sessions with rewards 1, 0, 1, 0; two return two outputs. By hand: mean 1/2, deviation sqrt(1/3)."""
    keys = ["a_0_0", "a_0_1", "a_1_0", "a_2_0", "a_3_0", "a_3_1", "b_0_0", "b_1_0"]
    rewards = torch.tensor([0.5, 1.0, 0.0, 1.0, 7.0, 0.0, 1.0, 1.0])  # a session's reward is its last output's
    found = estimator.session_advantages(keys, rewards)
    assert found.tolist() == pytest.approx([0.866, 0.866, -0.866, 0.866, -0.866, -0.866, 0, 0], abs=1e-3)
    for name in skip.SESSIONS:
        assert skip.zero_variance(keys, rewards.tolist(), name) == [False] * 6 + [True] * 2
    assert estimator.session_advantages(keys[-2:], rewards[-2:]) is None  # verl's rows are right


def test_what_forbids_leaving_any_response_out():
    """Among them the estimators that teach from such a group too, as they whiten over the batch."""
    config = presets.compose("cppo")
    forbidding = [("algorithm.adv_estimator", name) for name in OTHERS]
    forbidding += [(key, True) for key in ("algorithm.use_kl_in_reward", "distillation.enabled")]
    forbidding += [(f"{skip.ACTOR}.{name}", True) for name in ("use_kl_loss", "shuffle")]
    forbidding += [(f"{skip.ACTOR}.entropy_coeff", 0.01), (f"{skip.ACTOR}.loss_agg_mode", "token-mean")]
    for key, value in [*forbidding, ("trainer.v1.trust_region.skip_zero_variance", False)]:
        changed = config.copy()
        OmegaConf.update(changed, key, value)
        assert list(skip.obstacles(changed)) == [f"{key}={value}"]
    for name in skip.GROUPED:
        config.algorithm.adv_estimator = name
        assert not list(skip.obstacles(config))


def test_rows_that_stay_by_hand():
    """Two ranks of two updates of three rows; the fullest cell needs two, so every cell keeps two."""
    droppable = [bool(d) for d in (0, 1, 0, 1, 1, 1, 0, 1, 1, 1, 0, 1)]
    lengths = [9, 9, 9, 5, 4, 6, 9, 3, 2, 7, 9, 8]
    # cell one: 0 2; cell two: the two shortest, 3 4; cell three: 6 and 8; cell four: 10 and 9
    assert skip.rows_to_keep(droppable, lengths, ranks=2, updates=2) == [0, 2, 3, 4, 6, 8, 9, 10]
    # an update needs at least one micro-batch: the shortest rows stand in
    assert skip.rows_to_keep([True] * 8, [4, 3, 2, 1] * 2, 1, 2, multiple=2) == [2, 3, 6, 7]
    assert skip.rows_to_keep([], [], 2, 2) == []


@pytest.mark.parametrize(("ranks", "updates", "multiple"), list(itertools.product([1, 2, 4], [1, 3], [1, 2, 3])))
def test_properties(ranks: int, updates: int, multiple: int):
    rng = np.random.default_rng(ranks * 10 + updates)
    cells = ranks * updates
    for share, size in itertools.product((0.0, 0.5, 0.9, 1.0), (multiple, 6 * multiple)):
        droppable = (rng.random(cells * size) < share).tolist()
        lengths = rng.integers(1, 100, cells * size).tolist()
        kept = skip.rows_to_keep(droppable, lengths, ranks, updates, multiple)
        assert kept == sorted(set(kept))
        assert {i for i, d in enumerate(droppable) if not d} <= set(kept)
        in_cell = [[row for row in kept if row // size == cell] for cell in range(cells)]
        (count,) = {len(rows) for rows in in_cell}
        assert count % multiple == 0
        assert count >= multiple
        # no smaller multiple would do
        needed = max(sum(not d for d in droppable[c * size : (c + 1) * size]) for c in range(cells))
        assert count - multiple < max(needed, 1)
        # the filling is the shortest that was to be had
        for cell, rows in enumerate(in_cell):
            filling = [lengths[row] for row in rows if droppable[row]]
            dropped = [lengths[row] for row in range(cell * size, (cell + 1) * size) if row not in rows]
            assert not filling or not dropped or max(filling) <= min(dropped)


def test_unequal_cells_are_refused():
    with pytest.raises(ValueError, match="7 rows.*2 ranks x 1 updates"):
        skip.rows_to_keep([True] * 7, [1] * 7, 2, 1)
