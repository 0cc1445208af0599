"""Memory of one GPU by part, on paper: FSDP2 with AdamW in float32, bf16 arithmetic, vLLM beside it.

Trainer and vLLM take turns (verl's free_cache_engine): each phase is estimated on its own. Parts whose peaks do not
coincide are added all the same, so the sum errs upward. Sizes are in bytes.
"""

from dataclasses import dataclass

from recipe.settings import Settings
from recipe.shapes import Shape

GB = 1e9
FIXED = 4 * GB  # CUDA contexts of both processes, NCCL, what a sleeping vLLM keeps
FRAGMENTATION = 0.10  # of what the trainer's allocator holds
LOGIT_BYTES = 6  # bf16 logits, saved log-softmax, gradient; 2 with flash-attn's cross-entropy, which works in place
VLLM_WORKSPACE = 3 * GB  # inside vLLM's share: activations, CUDA graphs


@dataclass(frozen=True)
class Memory:
    """Part -> bytes of one GPU in each phase, and what follows for a replica's KV cache and a node's host."""

    training: dict[str, float]
    rollout: dict[str, float]
    cache_tokens: int
    host: float

    @property
    def peak(self) -> float:
        return max(sum(self.training.values()), sum(self.rollout.values()))


def estimate(shape: Shape, s: Settings, gpu_bytes: float = 80 * GB) -> Memory:
    """Memory of one GPU of ``gpu_bytes``, for runs of verl's FSDP2 engine with its default precision."""
    # float32 shards; with ``offload_policy`` they live on the host throughout
    each = 0 if s.offload_policy else 4 * shape.parameters / s.gpus
    kept = "activations: checkpoints" if s.checkpointing else "activations: all layers"
    layer = saved(shape)
    # unsharded: two layers (one prefetched) in bf16, a gradient in bf16 and float32 (reduction); the LM head alike
    gathered = (2 * 2 + 2 + 4) * shape.layer + (2 + 2 + 4) * shape.embedding
    # while a layer runs backward: what it saved, recomputed, and gradients of its widest parts
    at_work = layer + 2 * 2 * (shape.inner * shape.chosen + shape.hidden)
    training = {
        "parameters": each,
        "gradients": each,
        "Adam": 2 * each,
        "gathered layers and their gradients": gathered,
        kept: shape.layers * (2 * shape.hidden if s.checkpointing else layer) * s.tokens_per_gpu,
        "activations: layer at work": at_work * s.tokens_per_gpu,
        "logits": s.tokens_per_gpu * shape.vocabulary * LOGIT_BYTES,
    }
    training |= {"fragmentation": FRAGMENTATION * sum(training.values()), "fixed": FIXED}
    share, weights = s.gpu_share * gpu_bytes, 2 * shape.parameters / s.tensor_parallel
    cache = max(share - weights - VLLM_WORKSPACE, 0)
    rollout = {
        "vLLM: weights": weights,
        "vLLM: KV cache": cache,
        "vLLM: workspace": min(VLLM_WORKSPACE, share),
        "parameters": 0 if s.param_offload else each,
        "Adam": 0 if s.optimizer_offload else 2 * each,
        "fixed": FIXED,
    }
    on_host = 4 if s.offload_policy else s.param_offload + 2 * s.optimizer_offload
    host = 4 * shape.parameters / s.nodes * on_host
    return Memory(training, rollout, int(cache * s.tensor_parallel / shape.cache_bytes), host)


def saved(shape: Shape) -> float:
    """Bytes a token that autograd keeps of one layer in bf16, flash attention, RMSNorm in float32."""
    h, q, kv, inner = shape.hidden, shape.query, shape.key_value, shape.inner * shape.chosen
    norms = 2 * 6 * h + 6 * (q + kv)  # float32 input and bf16 output; of queries and keys too
    attention = 2 * h + 2 * (q + 2 * kv) + 2 * q  # input of the projections; q, k, v; output
    mlp = 2 * h + 4 * 2 * inner  # input; gate, its activation, up, product
    routing = shape.chosen * 3 * 2 * h + 4 * shape.experts if shape.experts else 0  # copies for each expert; router
    return norms + attention + mlp + routing
