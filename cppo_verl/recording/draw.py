"""Which responses of a step are recorded, and which steps stay when the disk allowance is used up."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from cppo_verl.recording import files


def drawn(sizes: Sequence[int], wanted: int, seed: int, step: int) -> list[int]:
    """Positions of the groups to record: whole ones, as many as fit into ``wanted`` responses, at least one.

    They are taken in an order that depends on ``seed``, ``step`` and the group's position alone.

    Args:
        sizes: responses of each group, in an order that repeats from run to run (the data loader's).
    """

    def place(group: int) -> bytes:
        return hashlib.blake2b(repr((seed, step, group)).encode(), digest_size=8).digest()

    chosen: list[int] = []
    for group in sorted(range(len(sizes)), key=place):
        if not chosen or sum(sizes[one] for one in chosen) + sizes[group] <= wanted:
            chosen.append(group)
    return sorted(chosen)


def make_room(run_dir: Path, limit: int, every: int) -> int:
    """Bring the records of a run under ``limit`` bytes by thinning them out evenly; the new distance of the steps.

    While they are too large, the distance doubles, and the records of steps that are no multiple of it are deleted:
    what stays spans the whole run. A step that is larger than the limit by itself does not stay either.
    """
    found = {step: (path, path.stat().st_size) for step, path in files.steps(run_dir).items()}
    while found and sum(size for _, size in found.values()) > limit:
        if len(found) > 1:
            every *= 2
        going = [step for step in found if step % every] or [min(found)]
        for step in going:
            found.pop(step)[0].unlink(missing_ok=True)
    return every


def distance(run_dir: Path) -> int:
    """Steps between two records so far: what the newest record says, 1 without any."""
    found = files.steps(run_dir)
    return files.read(found[max(found)]).header.every if found else 1
