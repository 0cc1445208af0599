"""Settings of a run that paper alone can refuse: counts, what must divide what, room for the longest sequence.

One set of rules for two readers: the start check, which has the composed config, and a plan, which has the overrides
only. A rule whose keys are not all there says nothing.
"""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cppo_verl.launch import paths

ACTOR, ROLLOUT = "actor_rollout_ref.actor.", "actor_rollout_ref.rollout."
PROMPTS, MINIBATCH, N = "data.train_batch_size", ACTOR + "ppo_mini_batch_size", ROLLOUT + "n"
PROMPT_TOKENS, RESPONSE_TOKENS = "data.max_prompt_length", "data.max_response_length"
NODES, GPUS = "trainer.nnodes", "trainer.n_gpus_per_node"
SP, OLD_SP = ACTOR + "fsdp_config.ulysses_sequence_parallel_size", ACTOR + "ulysses_sequence_parallel_size"
TP = ROLLOUT + "tensor_model_parallel_size"
OWN_NODES, OWN_GPUS = ROLLOUT + "nnodes", ROLLOUT + "n_gpus_per_node"  # of a rollout apart from the trainer's GPUs
BUDGET, DYNAMIC, STRATEGY = ACTOR + "ppo_max_token_len_per_gpu", ACTOR + "use_dynamic_bsz", ACTOR + "strategy"
ATTENTION = "actor_rollout_ref.model.override_config.attn_implementation"
PACKED = "actor_rollout_ref.model.use_remove_padding"

COUNTS: tuple[str, ...] = (PROMPTS, MINIBATCH, N, PROMPT_TOKENS, RESPONSE_TOKENS, NODES, GPUS, SP, OLD_SP, TP, BUDGET)
COUNTS += (ACTOR + "ppo_micro_batch_size_per_gpu", ACTOR + "ppo_epochs", ROLLOUT + "val_kwargs.n")
COUNTS += ("trainer.total_training_steps", "trainer.total_epochs")
OTHERS = (paths.MODEL, *paths.DATA, OWN_NODES, OWN_GPUS, DYNAMIC, STRATEGY, ATTENTION, PACKED)
KEYS = (*COUNTS, *OTHERS)
FSDP = ("fsdp", "fsdp2")
VERLS_ATTENTION = "flash_attention_2"  # verl's where none is named


@dataclass(frozen=True)
class Heads:
    """Attention heads of a model: of queries, and of keys and values."""

    query: int
    key_value: int

    def split_over(self, size: int) -> bool:
        """Whether ``size`` ranks get equal shares; key-value heads may also be repeated evenly."""
        return self.query % size == 0 and (self.key_value % size == 0 or size % self.key_value == 0)

    def remedy(self, key: str, size: int, why: str) -> Iterator[str]:
        """The sentence for a size that they cannot be split over; none for another."""
        if not self.split_over(size):
            allowed = ", ".join(str(size) for size in range(1, self.query + 1) if self.split_over(size))
            model = f"{self.query} attention heads and {self.key_value} key-value heads"
            yield f"{key}={size} with a model of {model}: {why}; set it to one of {allowed}."


def problems(values: Mapping[str, Any], heads: Heads | None = None) -> Iterator[str]:
    """One sentence for each number that no run survives.

    Args:
        values: Hydra key -> value, of the keys in ``KEYS``; None and missing keys are not looked at.
        heads: of the model, where they are known.
    """
    given = {key: value for key, value in values.items() if value is not None}
    wrong = list(_counts(given))
    yield from wrong
    if not wrong:  # what follows divides by them
        if given.get(STRATEGY, "fsdp") in FSDP:
            yield from _trainer_ranks(given, heads)
        yield from _rollout_ranks(given, heads)
        yield from _room(given)


def model_config(model_path: Any) -> Path | None:
    """The config.json of a local folder, or of a hub id that has been downloaded; None where there is neither."""
    if not isinstance(model_path, str):
        return None
    folder = Path(os.path.expanduser(model_path))
    if folder.is_dir():
        return folder / "config.json"
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(model_path, "config.json")
    except HFValidationError:  # no hub id either; verl says so
        return None
    return Path(cached) if isinstance(cached, str) else None


def heads_of(config_json: Path) -> Heads | None:
    """The heads that a model's config.json gives; None where there is no such file, or for a model without heads."""
    try:
        config = json.loads(config_json.read_text(encoding="utf-8"))
        config = config.get("text_config", config)
        query = int(config["num_attention_heads"])
        return Heads(query, int(config.get("num_key_value_heads") or query)) if query > 0 else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def sequence_parallel(values: Mapping[str, Any]) -> tuple[str, int]:
    """Key and size of Ulysses sequence parallelism; verl's old key wins where it is above 1."""
    old = values.get(OLD_SP) or 1
    return (OLD_SP, old) if _is_count(old) and old > 1 else (SP, values.get(SP) or 1)


def _counts(given: Mapping[str, Any]) -> Iterator[str]:
    for key in COUNTS:
        if key in given and not _is_count(given[key]):
            yield f"{key}={given[key]!r} must be a whole number of at least 1."


def _rollout_ranks(given: Mapping[str, Any], heads: Heads | None) -> Iterator[str]:
    size = given.get(TP, 1)
    nodes, gpus = (OWN_NODES, OWN_GPUS) if _is_count(given.get(OWN_NODES)) else (NODES, GPUS)
    if _is_count(given.get(nodes)) and _is_count(given.get(gpus)):
        each = given[gpus]
        if given[nodes] * each % size or (each % size and size % each):
            yield _indivisible(TP, size, given, nodes, gpus, each)
    if heads is not None:
        yield from heads.remedy(TP, size, "vLLM splits them over its GPUs")


def _trainer_ranks(given: Mapping[str, Any], heads: Heads | None) -> Iterator[str]:
    key, size = sequence_parallel(given)
    if {NODES, GPUS} <= given.keys():
        gpus = given[NODES] * given[GPUS]
        ranks, responses = gpus // size, given.get(MINIBATCH, 0) * given.get(N, 0)
        if gpus % size:
            yield _indivisible(key, size, given, NODES, GPUS, gpus)
        elif responses % ranks:
            yield (
                f"{MINIBATCH}={given[MINIBATCH]} x {N}={given[N]} is {responses} responses, which do not divide over "
                f"{ranks} data-parallel ranks ({gpus} GPUs / {key}={size}); make it a multiple of {ranks}."
            )
    if size > 1 and not given.get(PACKED, True):
        yield f"{key}={size} with {PACKED}=False: verl splits packed sequences only; set {PACKED}=True."
    attention = str(given.get(ATTENTION, VERLS_ATTENTION))
    if size > 1 and "flash" not in attention:  # in the names of the hub's kernels too
        yield (
            f"{key}={size} with {ATTENTION}={attention}: verl's sequence parallelism lives inside flash attention; "
            "with any other, a response that is cut between two GPUs gets wrong log-probs, in silence. Set "
            f"{ATTENTION}={VERLS_ATTENTION} (docs/gpu.md: how to install it), or {key}=1."
        )
    if heads is not None:
        yield from heads.remedy(key, size, "ranks of a group share them")


def _room(given: Mapping[str, Any]) -> Iterator[str]:
    if not (given.get(DYNAMIC) and {BUDGET, PROMPT_TOKENS, RESPONSE_TOKENS} <= given.keys()):
        return
    key, size = sequence_parallel(given)
    longest = given[PROMPT_TOKENS] + given[RESPONSE_TOKENS]
    if given[BUDGET] * size < longest:
        yield (
            f"{BUDGET}={given[BUDGET]} x {key}={size} holds no sequence of {PROMPT_TOKENS}={given[PROMPT_TOKENS]} + "
            f"{RESPONSE_TOKENS}={given[RESPONSE_TOKENS]} = {longest} tokens: verl stops at the first one; set "
            f"{BUDGET} to {-(-longest // size)} or more."
        )


def _indivisible(key: str, size: int, given: Mapping[str, Any], nodes: str, gpus: str, number: int) -> str:
    whose = f"the {given[nodes] * given[gpus]} GPUs of {nodes}={given[nodes]} x {gpus}={given[gpus]}"
    return f"{key}={size} does not divide {whose}; set it to a divisor of {number}."


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
