"""FSDP shards to a Hugging Face folder in the precision of the shards: ``python -m cppo_verl.evaluation.merge``.

verl's merger rounds every tensor to bfloat16. A float32 rollout computes with the unrounded weights, and greedy
decoding notices. This is verl's merger with that step replaced.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from verl.model_merger.base_model_merger import ModelMergerConfig
from verl.model_merger.fsdp_model_merger import FSDPModelMerger, merge_non_dtensor_shards


class PreciseMerger(FSDPModelMerger):
    """verl's FSDP merger without the cast."""

    def _load_and_merge_state_dicts(self, world_size, total_shards, mesh_shape, mesh_dim_names):
        folder = Path(str(self.config.local_dir))
        shards = [
            torch.load(folder / f"model_world_size_{world_size}_rank_{rank}.pt", map_location="cpu", weights_only=True)
            for rank in range(total_shards)
        ]
        return {key: self._merge_tensor(key, [shard[key] for shard in shards]) for key in sorted(shards[0])}

    def _merge_tensor(self, key: str, parts: list[torch.Tensor]) -> torch.Tensor:
        first = parts[0]
        if not isinstance(first, DTensor):
            return merge_non_dtensor_shards(key, parts)
        local = [part.to_local() for part in parts if isinstance(part, DTensor)]
        return self._merge_by_placement(local, first.placements[-1])  # the outer dimension, if any, is replicas


def merge(actor: str, target: str, trust_remote_code: bool) -> None:
    """Write the model of ``actor`` (shards, huggingface/) into the existing folder ``target``."""
    folders: dict[str, Any] = {"local_dir": actor, "target_dir": target, "hf_model_config_path": f"{actor}/huggingface"}
    PreciseMerger(ModelMergerConfig("merge", "fsdp", trust_remote_code=trust_remote_code, **folders)).merge_and_save()


if __name__ == "__main__":
    merge(sys.argv[1], sys.argv[2], sys.argv[3] == "1")
