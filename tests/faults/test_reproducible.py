"""The same seeds and the same order at every repetition; the real stack does the rest in test_real_run.py."""

from cppo_verl.integration.reproducible import loader_order, seed_of

PROMPT = [{"role": "user", "content": "1+1=?"}]


def test_a_seed_is_the_same_in_another_process():
    assert seed_of(7, 3, PROMPT, 0, 1) == 1148461029


def test_whatever_differs_has_another_seed():
    other = [{"role": "user", "content": "1+2=?"}]
    seeds = [seed_of(7, 3, PROMPT, 0, s) for s in range(64)] + [
        seed_of(7, 4, PROMPT, 0, 0),
        seed_of(8, 3, PROMPT, 0, 0),
    ]
    seeds += [seed_of(7, 3, other, 0, 0), seed_of(7, 3, PROMPT, 1, 0)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_rows_come_by_prompt_then_by_sample():
    keys = ["b_1_0", "a_10_0", "b_0_1", "a_2_0", "b_0_0"]
    assert [keys[row] for row in loader_order(keys, ["a", "b"])] == ["a_2_0", "a_10_0", "b_0_0", "b_0_1", "b_1_0"]
    assert [keys[row] for row in loader_order(keys, ["b", "a"])] == ["b_0_0", "b_0_1", "b_1_0", "a_2_0", "a_10_0"]
