"""What a plan reads from a run's Hydra overrides."""

from collections.abc import Sequence
from dataclasses import dataclass

ROLLOUT = "actor_rollout_ref.rollout."
ACTOR = "actor_rollout_ref.actor."
FSDP = ACTOR + "fsdp_config."


@dataclass(frozen=True)
class Settings:
    """Counts are responses, prompts, tokens or GPUs; ``gpu_share`` is the part of a GPU that vLLM takes."""

    prompts: int
    n: int
    minibatch: int
    prompt_tokens: int
    response_tokens: int
    steps: int
    test_freq: int
    val_n: int
    nodes: int
    gpus_per_node: int
    sequence_parallel: int
    tokens_per_gpu: int
    tensor_parallel: int
    gpu_share: float
    param_offload: bool
    optimizer_offload: bool
    offload_policy: bool
    checkpointing: bool
    estimator: str

    @property
    def gpus(self) -> int:
        return self.nodes * self.gpus_per_node

    @property
    def responses(self) -> int:
        """Responses of a step."""
        return self.prompts * self.n

    @property
    def updates(self) -> int:
        """Optimizer steps of a training step."""
        return self.prompts // self.minibatch

    @property
    def replicas(self) -> int:
        """Copies of the rollout engine."""
        return self.gpus // self.tensor_parallel

    @property
    def longest(self) -> int:
        """Most tokens of one sequence."""
        return self.prompt_tokens + self.response_tokens


def parse(overrides: Sequence[str]) -> dict[str, str]:
    """Key to value; the last one of a key counts, as in Hydra."""
    pairs = (text.partition("=") for text in overrides if "=" in text)
    return {key.lstrip("+"): value.strip("'\"") for key, _, value in pairs}


def read(overrides: Sequence[str]) -> Settings:
    """The settings behind the overrides that run_scripts/train.sh makes.

    Raises:
        ValueError: naming a key that is missing or no number.
    """
    given = parse(overrides)

    def value(key: str, kind=int):
        try:
            text = given[key]
            return text.lower() == "true" if kind is bool else kind(text)
        except KeyError:
            raise ValueError(f"a plan needs {key}, which no override sets") from None
        except ValueError:
            raise ValueError(f"{key}={given[key]!r} is not of type {kind.__name__}") from None

    return Settings(
        prompts=value("data.train_batch_size"),
        n=value(ROLLOUT + "n"),
        minibatch=value(ACTOR + "ppo_mini_batch_size"),
        prompt_tokens=value("data.max_prompt_length"),
        response_tokens=value("data.max_response_length"),
        steps=value("trainer.total_training_steps"),
        test_freq=value("trainer.test_freq"),
        val_n=value(ROLLOUT + "val_kwargs.n"),
        nodes=value("trainer.nnodes"),
        gpus_per_node=value("trainer.n_gpus_per_node"),
        sequence_parallel=value(FSDP + "ulysses_sequence_parallel_size"),
        tokens_per_gpu=value(ACTOR + "ppo_max_token_len_per_gpu"),
        tensor_parallel=value(ROLLOUT + "tensor_model_parallel_size"),
        gpu_share=value(ROLLOUT + "gpu_memory_utilization", float),
        param_offload=value(FSDP + "param_offload", bool),
        optimizer_offload=value(FSDP + "optimizer_offload", bool),
        offload_policy=value(FSDP + "offload_policy", bool),
        checkpointing=value("actor_rollout_ref.model.enable_gradient_checkpointing", bool),
        estimator=given.get(ACTOR + "policy_loss.estimator", "binary"),
    )


def problems(settings: Settings) -> list[str]:
    """What a run would survive, but no longer as the paper's: beside ``cppo_verl.launch.sizes``."""
    s = settings
    if s.prompts % s.minibatch:
        return [
            f"PROMPTS={s.prompts} is no multiple of MINIBATCH={s.minibatch}: verl fills up with empty rows, which "
            "makes updates smaller."
        ]
    return []
