"""Which responses of a batch can be left out of the actor's update without changing the update.

Where all responses to a prompt have the same reward, a group estimator has no preference to teach: the advantages are
zero (verl's GRPO leaves up to 0.06 there by rounding). It is a property of the rewards, whichever estimator reads them.

verl cuts a batch into one contiguous part a data-parallel rank, and each part into the mini-batches of its updates.
Every (rank, update) cell must keep the same number of rows. So each cell drops as many rows as the fullest cell allows;
the shortest stay as filling.
"""

from collections.abc import Iterator, Sequence

from omegaconf import DictConfig, OmegaConf

OURS = "group_relative"
SESSIONS = (OURS, "grpo")  # estimators to which the last output of a session stands for all of it
GROUPED = (*SESSIONS, "grpo_vectorized", "grpo_passk", "rloo", "rloo_vectorized", "opo", "gpg")
ACTOR = "actor_rollout_ref.actor"
FORBID = {  # key -> whether its value forbids to leave any response out
    "trainer.v1.trust_region.skip_zero_variance": lambda value: value is False,
    "algorithm.adv_estimator": lambda value: str(value) not in GROUPED,
    "algorithm.use_kl_in_reward": bool,
    "distillation.enabled": bool,
    f"{ACTOR}.use_kl_loss": bool,
    f"{ACTOR}.entropy_coeff": bool,
    f"{ACTOR}.loss_agg_mode": lambda value: value in ("token-mean", "token-sum"),  # scaled by the rows that are there
    f"{ACTOR}.shuffle": bool,
}


def obstacles(config: DictConfig) -> Iterator[str]:
    """Each ``key=value`` of a composed verl config for which every response must be trained on."""
    for key, forbids in FORBID.items():
        value = OmegaConf.select(config, key)
        if forbids(value):
            yield f"{key}={value}"


def split(key: str) -> tuple[str, int, int]:
    """Prompt, session and output of verl's key ``{uid}_{session}_{output}``; a key of another form is a prompt."""
    uid, *numbers = key.rsplit("_", 2)
    ours = len(numbers) == 2 and all(map(str.isdecimal, numbers))
    return (uid, int(numbers[0]), int(numbers[1])) if ours else (key, 0, 0)


def last_outputs(keys: Sequence[str]) -> list[int]:
    """For each row, the row that holds the last output of its session: an agent loop may return several."""
    last: dict[tuple[str, int], tuple[int, int]] = {}
    for row, (uid, session, output) in enumerate(map(split, keys)):
        last[uid, session] = max(last.get((uid, session), (-1, row)), (output, row))
    return [last[split(key)[:2]][1] for key in keys]


def zero_variance(keys: Sequence[str], rewards: Sequence[float], estimator: str) -> list[bool]:
    """For each response, whether all that count in its prompt's group have the same reward.

    Args:
        keys: verl's, one a row. rewards: of each row.
        estimator: one of ``GROUPED``. A response that is alone has no advantage under ``OURS``, and its whole reward
            as advantage under verl's.
    """
    rows = last_outputs(keys) if estimator in SESSIONS else list(range(len(keys)))
    groups: dict[str, dict[int, float]] = {}
    for key, row in zip(keys, rows, strict=True):
        groups.setdefault(split(key)[0], {})[row] = rewards[row]
    least = 1 if estimator == OURS else 2
    idle = {uid for uid, group in groups.items() if len(group) >= least and len(set(group.values())) == 1}
    return [split(key)[0] in idle for key in keys]


def rows_to_keep(
    droppable: Sequence[bool], lengths: Sequence[int], ranks: int, updates: int, multiple: int = 1
) -> list[int]:
    """Row numbers to keep, in their order; equally many in each of the ``ranks * updates`` cells.

    Args:
        droppable: for each row, whether it may be left out. lengths: tokens of each row.
        ranks, updates: the cells, rank by rank.
        multiple: rows of a cell must remain a multiple of this (the micro-batch size).

    Raises:
        ValueError: when the rows do not divide into equal cells.
    """
    rows, cells = len(droppable), ranks * updates
    if len(lengths) != rows or cells < 1 or rows % cells:
        said = f"{rows} rows (lengths of {len(lengths)})"
        raise ValueError(f"{said} do not divide into {ranks} ranks x {updates} updates")
    size = rows // cells
    parts = [range(start, start + size) for start in range(0, rows, size or 1)]
    needed = max((sum(not droppable[row] for row in part) for part in parts), default=0)
    needed = min(size, max(1, -(-needed // multiple)) * multiple)
    kept: list[int] = []
    for part in parts:
        useful = [row for row in part if not droppable[row]]
        filling = sorted((row for row in part if droppable[row]), key=lambda row: lengths[row])
        kept += sorted(useful + filling[: needed - len(useful)])
    return kept
