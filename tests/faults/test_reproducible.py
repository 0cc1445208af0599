"""The same seeds and the same order at every repetition; the real stack does the rest in test_real_run.py."""

import subprocess
import sys

import pytest

from cppo_verl import presets
from cppo_verl.integration import checks
from cppo_verl.integration.reproducible import loader_order, seed_of

PROMPT = [{"role": "user", "content": "1+1=?"}]


def test_a_seed_is_the_same_in_another_process():
    source = f"from cppo_verl.integration.reproducible import seed_of; print(seed_of(7, 3, {PROMPT!r}, 1))"
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert int(done.stdout.split()[-1]) == seed_of(7, 3, PROMPT, 1)


def test_whatever_differs_has_another_seed():
    other = [{"role": "user", "content": "1+2=?"}]
    seeds = [seed_of(7, 3, PROMPT, s) for s in range(64)] + [seed_of(7, 4, PROMPT, 0), seed_of(8, 3, PROMPT, 0)]
    seeds.append(seed_of(7, 3, other, 0))
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_rows_come_by_prompt_then_by_sample():
    keys = ["b_1_0", "a_10_0", "b_0_1", "a_2_0", "b_0_0"]
    assert [keys[row] for row in loader_order(keys, ["a", "b"])] == ["a_2_0", "a_10_0", "b_0_0", "b_0_1", "b_1_0"]
    assert [keys[row] for row in loader_order(keys, ["b", "a"])] == ["b_0_0", "b_0_1", "b_1_0", "a_2_0", "a_10_0"]


@pytest.mark.parametrize(
    ("preset", "override", "words"),
    [
        ("cppo_topk", "actor_rollout_ref.rollout.n=8", "estimator=topk: each brings its own agent loop"),
        ("cppo", "algorithm.filter_groups.enable=true", "filter_groups.enable=True"),
    ],
)
def test_what_it_cannot_do_is_refused(preset, override, words):
    overrides = ["actor_rollout_ref.rollout.n=8", "trainer.v1.trust_region.reproducible=true", f"++{override}"]
    with pytest.raises(checks.RunConfigError, match=words):
        checks.require(presets.compose(preset, overrides))
