"""What a plan reads from a run's Hydra overrides, with Python alone."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from cppo_verl.launch.sizes import ACTOR, ROLLOUT

FSDP = ACTOR + "fsdp_config."
WORDS = {"true": True, "false": False, "null": None}


def _key(name: str, **default: Any) -> Any:
    """A field that is read from this key of verl's config; without a default the key has to be given."""
    return field(metadata={"key": name}, **default)


@dataclass(frozen=True)
class Settings:
    """Counts are responses, prompts, tokens or GPUs; ``gpu_share`` is the part of a GPU that vLLM takes."""

    prompts: int = _key("data.train_batch_size")
    n: int = _key(ROLLOUT + "n")
    minibatch: int = _key(ACTOR + "ppo_mini_batch_size")
    prompt_tokens: int = _key("data.max_prompt_length")
    response_tokens: int = _key("data.max_response_length")
    steps: int = _key("trainer.total_training_steps")
    test_freq: int = _key("trainer.test_freq")
    val_n: int = _key(ROLLOUT + "val_kwargs.n")
    nodes: int = _key("trainer.nnodes")
    gpus_per_node: int = _key("trainer.n_gpus_per_node")
    sequence_parallel: int = _key(FSDP + "ulysses_sequence_parallel_size")
    tokens_per_gpu: int = _key(ACTOR + "ppo_max_token_len_per_gpu")
    tensor_parallel: int = _key(ROLLOUT + "tensor_model_parallel_size")
    gpu_share: float = _key(ROLLOUT + "gpu_memory_utilization")
    param_offload: bool = _key(FSDP + "param_offload")
    optimizer_offload: bool = _key(FSDP + "optimizer_offload")
    offload_policy: bool = _key(FSDP + "offload_policy")
    checkpointing: bool = _key("actor_rollout_ref.model.enable_gradient_checkpointing")
    estimator: str = _key(ACTOR + "policy_loss.estimator", default="binary")

    @property
    def gpus(self) -> int:
        return self.nodes * self.gpus_per_node

    @property
    def responses(self) -> int:  # of a step
        return self.prompts * self.n

    @property
    def updates(self) -> int:  # of the optimizer in a training step
        return self.prompts // self.minibatch

    @property
    def replicas(self) -> int:  # of the rollout engine
        return self.gpus // self.tensor_parallel

    @property
    def longest(self) -> int:  # tokens of one sequence
        return self.prompt_tokens + self.response_tokens


def parse(overrides: Sequence[str]) -> dict[str, Any]:
    """Key to value, a number where it is one; the last one of a key counts, as in Hydra."""
    found: dict[str, Any] = {}
    for key, equals, text in (override.partition("=") for override in overrides):
        if equals:
            found[key.lstrip("+")] = WORDS.get(text.lower(), text.strip("'\""))
            for kind in (float, int):
                with contextlib.suppress(ValueError):
                    found[key.lstrip("+")] = kind(text)
    return found


def read(given: Mapping[str, Any]) -> Settings:
    """The settings in the parsed overrides that run_scripts/train.sh makes.

    Raises:
        ValueError: naming a key that is missing.
    """
    keys = {own.metadata["key"]: own for own in fields(Settings)}
    for key, own in keys.items():
        if key not in given and own.default is MISSING:
            raise ValueError(f"a plan needs {key}, which no override sets")
    return Settings(**{own.name: given[key] for key, own in keys.items() if key in given})
