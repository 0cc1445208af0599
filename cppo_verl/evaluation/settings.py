"""What an evaluation depends on, and what a run's own config says of it."""

import glob
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf


@dataclass(frozen=True)
class Sampling:
    """All that decides a response besides model and data, as vLLM takes it. The first four defaults are the paper's.
    Lengths are in tokens; ``max_model_len`` counts prompt and response, None: the model's."""

    n: int = 16
    temperature: float = 0.7
    top_p: float = 0.95
    max_response_length: int = 8192
    top_k: int = -1
    seed: int = 0
    dtype: str = "bfloat16"
    max_model_len: int | None = None
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Reward:
    """A scoring function as verl's ``reward.custom_reward_function`` names it; no path means verl's own scorers."""

    path: str | None = None
    name: str = "compute_score"
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RunConfig:
    """What a run's config.yaml says about its validation; None and empty where it says nothing."""

    val_files: list[str] = field(default_factory=list)
    sampling: dict[str, Any] = field(default_factory=dict)
    reward: Reward = field(default_factory=Reward)
    trust_remote_code: bool = False


def read_run_config(path: Path | None) -> RunConfig:
    """Read ``config.yaml`` of a run directory; an empty RunConfig where there is none."""
    if path is None or not path.is_file():
        return RunConfig()
    config = OmegaConf.load(path)

    def value(key: str) -> Any:
        found = OmegaConf.select(config, key)
        return OmegaConf.to_container(found) if OmegaConf.is_config(found) else found

    files = value("data.val_files") or []
    sampling = {
        "max_response_length": value("data.max_response_length"),
        "chat_template_kwargs": value("data.apply_chat_template_kwargs"),
        "dtype": value("actor_rollout_ref.rollout.dtype"),
        "max_model_len": value("actor_rollout_ref.rollout.max_model_len"),
    }
    reward = value("reward.custom_reward_function") or {}
    return RunConfig(
        val_files=[path for file in ([files] if isinstance(files, str) else files) for path in _meant(file)],
        sampling={k: v for k, v in sampling.items() if v is not None},
        reward=Reward(reward.get("path"), reward.get("name") or "compute_score", reward.get("reward_kwargs") or {}),
        trust_remote_code=bool(value("actor_rollout_ref.model.trust_remote_code")),
    )


def _meant(file: str) -> list[str]:
    """verl reads ``* ? [`` as a pattern, and `cppo-verl run` escapes them where they are a name."""
    return [file] if Path(file).is_file() else sorted(glob.glob(file)) or [file]
