"""Which groups are recorded, and which steps stay when the allowance is used up."""

from dataclasses import replace

from cppo_verl.recording import draw, files
from cppo_verl.recording.record import StepRecord
from tests.recording.synthetic import run, step_record


def test_whole_groups_as_many_as_fit_and_at_least_one():
    for sizes, wanted, groups in (([4] * 10, 8, 2), ([4] * 10, 11, 2), ([8] * 10, 3, 1), ([], 8, 0), ([4, 4], 100, 2)):
        assert len(draw.drawn(sizes, wanted, seed=0, step=1)) == groups
    sizes = [1, 2, 3, 4, 5, 6]
    for step in range(50):
        chosen = draw.drawn(sizes, 7, seed=1, step=step)
        assert sum(sizes[i] for i in chosen) <= 7 and chosen == sorted(set(chosen))


def test_every_group_has_its_turn_and_pairs_do_not_repeat():
    seen, again, other = ([tuple(draw.drawn([4] * 6, 8, seed, step)) for step in range(600)] for seed in (0, 0, 1))
    counts = [sum(i in pair for pair in seen) for i in range(6)]
    assert min(counts) > 150 and max(counts) < 250  # 200 each, on average
    assert len(set(seen)) == 15  # all pairs of six
    assert seen == again != other


def total(folder) -> int:
    return sum(path.stat().st_size for path in files.steps(folder).values())


def test_the_records_stay_below_the_limit_and_span_the_run(tmp_path):
    size = total(run(tmp_path / "one", steps=1))
    limit, every = 10 * size, 1
    for step in range(1, 101):
        if step % every == 0:
            files.write(tmp_path, step_record(step))
            every = draw.make_room(tmp_path, limit, every)
            assert total(tmp_path) <= limit
    assert list(files.steps(tmp_path)) == list(range(16, 101, 16)) and every == 16
    assert draw.make_room(tmp_path, 100, every) >= 16  # below a single step: nothing is kept
    assert files.steps(tmp_path) == {}


def test_the_distance_is_read_back_from_the_newest_record(tmp_path):
    assert draw.distance(tmp_path) == 1
    for every in (1, 8):
        record = step_record(16)
        files.write(tmp_path, StepRecord(replace(record.header, every=every), record.responses))
        assert draw.distance(tmp_path) == every
