"""Which rows stay: by hand and by the properties that make skipping harmless."""

import itertools

import numpy as np
import pytest

from cppo_verl.integration.skip import rows_to_keep


def test_by_hand():
    """Two ranks of two updates of three rows; the fullest cell needs two, so every cell keeps two."""
    droppable = [0, 1, 0, 1, 1, 1, 0, 1, 1, 1, 0, 1]
    lengths = [9, 9, 9, 5, 4, 6, 9, 3, 2, 7, 9, 8]
    #          cell one: 0 2; cell two: the two shortest, 3 4; cell three: 6 and 8; cell four: 10 and 9
    assert rows_to_keep([bool(d) for d in droppable], lengths, ranks=2, updates=2) == [0, 2, 3, 4, 6, 8, 9, 10]


def test_multiple_rounds_up_by_hand():
    """Three useful rows of eight, in micro-batches of two: four stay, the shortest filling among them."""
    droppable = [True, False, True, False, True, False, True, True]
    lengths = [5, 9, 4, 9, 3, 9, 2, 1]
    assert rows_to_keep(droppable, lengths, 1, 1, multiple=2) == [1, 3, 5, 7]
    assert rows_to_keep(droppable, lengths, 1, 1, multiple=4) == [1, 3, 5, 7]
    assert rows_to_keep(droppable, lengths, 1, 1, multiple=8) == list(range(8))


def test_nothing_to_drop_and_nothing_to_keep():
    assert rows_to_keep([False] * 6, [1] * 6, 2, 1) == list(range(6))
    # an update needs at least one micro-batch: the shortest rows stand in
    assert rows_to_keep([True] * 6, [3, 2, 1, 1, 2, 3], 2, 1) == [2, 3]
    assert rows_to_keep([True] * 8, [4, 3, 2, 1] * 2, 1, 2, multiple=2) == [2, 3, 6, 7]


@pytest.mark.parametrize(("ranks", "updates", "multiple"), list(itertools.product([1, 2, 4], [1, 3], [1, 2, 3])))
def test_properties(ranks: int, updates: int, multiple: int):
    rng = np.random.default_rng(ranks * 10 + updates)
    cells = ranks * updates
    for share in (0.0, 0.2, 0.5, 0.9, 1.0):
        for size in (multiple, 2 * multiple, 6 * multiple):
            droppable = (rng.random(cells * size) < share).tolist()
            lengths = rng.integers(1, 100, cells * size).tolist()
            kept = rows_to_keep(droppable, lengths, ranks, updates, multiple)
            assert kept == sorted(set(kept))
            assert {i for i, d in enumerate(droppable) if not d} <= set(kept)
            in_cell = [[row for row in kept if row // size == cell] for cell in range(cells)]
            counts = {len(rows) for rows in in_cell}
            assert len(counts) == 1
            (count,) = counts
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


@pytest.mark.parametrize(
    ("rows", "lengths", "ranks", "updates"), [(7, 7, 2, 1), (8, 7, 2, 1), (8, 8, 3, 1), (4, 4, 0, 1)]
)
def test_unequal_cells_are_refused(rows: int, lengths: int, ranks: int, updates: int):
    with pytest.raises(ValueError, match=f"{rows} rows.*{ranks} ranks x {updates} updates"):
        rows_to_keep([True] * rows, [1] * lengths, ranks, updates)


def test_an_empty_batch_stays_empty():
    assert rows_to_keep([], [], 2, 2) == []
