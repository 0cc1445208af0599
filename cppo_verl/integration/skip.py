"""Which responses of a batch can be left out of the actor's update without changing the update.

verl cuts a batch into one contiguous part a data-parallel rank, and each part into the mini-batches of its updates.
Every (rank, update) cell must keep the same number of rows. Rows whose advantages are all zero add nothing to the
gradient, so each cell drops as many of them as the fullest cell allows; the shortest stay as filling.
"""

from collections.abc import Sequence


def rows_to_keep(
    droppable: Sequence[bool], lengths: Sequence[int], ranks: int, updates: int, multiple: int = 1
) -> list[int]:
    """Row numbers to keep, in their order; equally many in each of the ``ranks * updates`` cells.

    Args:
        droppable: for each row, whether it may be left out.
        lengths: tokens of each row.
        ranks, updates: the cells, rank by rank.
        multiple: rows of a cell must remain a multiple of this (the micro-batch size).

    Raises:
        ValueError: when the rows do not divide into equal cells.
    """
    rows, cells = len(droppable), ranks * updates
    if len(lengths) != rows or cells < 1 or rows % cells:
        raise ValueError(
            f"{rows} rows (lengths of {len(lengths)}) do not divide into {ranks} ranks x {updates} updates"
        )
    size = rows // cells
    parts = [range(start, start + size) for start in range(0, rows, size)] if size else []
    needed = max((sum(not droppable[row] for row in part) for part in parts), default=0)
    needed = min(size, max(1, -(-needed // multiple)) * multiple)
    kept: list[int] = []
    for part in parts:
        useful = [row for row in part if not droppable[row]]
        filling = sorted((row for row in part if droppable[row]), key=lambda row: lengths[row])
        kept += sorted(useful + filling[: needed - len(useful)])
    return kept
