"""From what the user names (run, checkpoint, model folder, hub id) to a folder that vLLM loads."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from cppo_verl.evaluation import EvaluationError
from cppo_verl.launch.checkpoints import POINTER

SHARDS = "model_world_size_*_rank_*.pt"
HUB_FILES = ["*.safetensors", "*.json", "*.txt", "*.jinja", "*.model", "*.py"]
WEIGHTS = (".safetensors", ".bin")
MODEL_FILES = (*WEIGHTS, ".pt", ".json", ".jinja", ".model", ".txt")  # of which weights and tokenizer consist
STAMP = "merged_from.json"
BLOCKS, BLOCK_BYTES = 16, 1 << 16


@dataclass(frozen=True)
class Source:
    """A model before merging: ``folder`` with its config and tokenizer, and with its weights unless these are shards of
    FSDP in ``actor``; ``run_dir`` if it has one."""

    name: str
    folder: Path
    actor: Path | None = None
    run_dir: Path | None = None

    def fingerprint(self) -> str:
        """Equal for equal content: a hash of names, sizes and evenly spaced blocks (all of a file up to 1 MiB)."""
        files = [*(self.actor.glob(SHARDS) if self.actor else ()), *self.folder.iterdir()]
        digest = hashlib.sha256()
        for file in sorted((p for p in files if p.suffix in MODEL_FILES), key=lambda p: p.name):
            size = file.stat().st_size
            digest.update(f"{file.name}\0{size}\0".encode())
            with file.open("rb") as stream:
                if size <= BLOCKS * BLOCK_BYTES:
                    digest.update(stream.read())
                    continue
                for block in range(BLOCKS):
                    stream.seek(block * (size - BLOCK_BYTES) // (BLOCKS - 1))
                    digest.update(stream.read(BLOCK_BYTES))
        return digest.hexdigest()


def locate(model: str) -> Source:
    """Find what ``model`` names: a run directory or its checkpoints folder (the latest checkpoint), global_step_N, its
    actor folder, a Hugging Face model folder, or a hub id; an EvaluationError where it looks like none of them."""
    path = Path(model).expanduser()
    if not path.exists():
        return _from_hub(model)
    path = path.resolve()
    for place in (path, path / "checkpoints"):
        if (place / POINTER).is_file():
            return _from_actor(place / f"global_step_{(place / POINTER).read_text().strip()}/actor")
    if path.name == "actor" or (path / "actor").is_dir():
        return _from_actor(path if path.name == "actor" else path / "actor")
    if (path / "config.json").is_file() and _has_weights(path):
        return Source(path.name, path)
    raise EvaluationError(
        f"{path} is neither a run ({POINTER}), a verl checkpoint (global_step_N with actor/) nor a Hugging Face model "
        f"(config.json and {' or '.join(WEIGHTS)} files)"
    )


def prepare(source: Source, cache: Path, dtype: str, trust_remote_code: bool = False) -> Path:
    """The folder to load: the model's own, or ``cache``/merged-<dtype>, merged from the shards, whole or not at all.

    verl's merger writes bfloat16, which is what a bfloat16 rollout computes with; other dtypes are merged without
    rounding. An EvaluationError where the merger fails, or the checkpoint holds a LoRA adapter.
    """
    if source.actor is None:
        return source.folder
    target, stamp = cache / f"merged-{dtype}", {"fingerprint": source.fingerprint()}
    if (target / STAMP).is_file() and json.loads((target / STAMP).read_text()) == stamp:
        return target
    temporary = cache / f".merged-{dtype}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    if dtype == "bfloat16":
        command = ["verl.model_merger", "merge", "--backend", "fsdp", "--local_dir", source.actor]
        command += ["--target_dir", temporary, *["--trust-remote-code"] * trust_remote_code]
    else:
        command = ["cppo_verl.evaluation.merge", source.actor, temporary, str(int(trust_remote_code))]
    done = subprocess.run([sys.executable, "-m", *map(str, command)], capture_output=True, text=True)
    if done.returncode != 0:
        last = "\n".join(done.stderr.strip().splitlines()[-5:])
        raise EvaluationError(f"merging {source.actor} failed (exit status {done.returncode}):\n{last}")
    if (temporary / "lora_adapter").exists():
        raise EvaluationError(
            f"{source.actor} holds a LoRA adapter, which would be left out; merge it into the model ({temporary} has "
            "both) and evaluate the result"
        )
    (temporary / STAMP).write_text(json.dumps(stamp))
    shutil.rmtree(target, ignore_errors=True)
    os.replace(temporary, target)
    return target


def _from_actor(actor: Path) -> Source:
    step, checkpoints, config = actor.parent, actor.parents[1], actor / "huggingface"
    run_dir = checkpoints.parent if checkpoints.name == "checkpoints" else checkpoints
    if not (config / "config.json").is_file():
        raise EvaluationError(
            f"{actor} has no huggingface/config.json, so it is no FSDP checkpoint of verl; a Megatron checkpoint has "
            "to be merged first with python -m verl.model_merger merge --backend megatron"
        )
    return Source(step.name, config, None if _has_weights(config) else actor, run_dir)


def _from_hub(model: str) -> Source:
    from huggingface_hub import snapshot_download

    try:
        return Source(model.replace("/", "--"), Path(snapshot_download(model, allow_patterns=HUB_FILES)))
    except Exception as error:  # no name of a model, network, authentication: one remedy
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise EvaluationError(
            f"model {model} is neither a folder here nor reachable on the hub ({reason}): check the name, the network "
            "and HF_HUB_OFFLINE, or give a local folder"
        ) from None


def _has_weights(folder: Path) -> bool:
    return any(p.suffix in WEIGHTS and p.stat().st_size for p in folder.iterdir())
