"""GPU-hours on paper: a roofline with stated efficiencies. Good for an order of magnitude, no promise."""

from dataclasses import dataclass
from typing import NamedTuple

from recipe.memory import Memory
from recipe.settings import Settings
from recipe.shapes import Shape

VALIDATION_PROMPTS = 90  # AIME 2024, 2025, 2026


@dataclass(frozen=True)
class Assumptions:
    """What the estimate takes for granted, about an H100 with 80 GB."""

    flops: float = 989e12  # dense bf16 peak of a GPU, 1/s
    utilization: float = 0.35  # share of it that training reaches
    bandwidth: float = 3.35e12  # of GPU memory, bytes/s
    bandwidth_share: float = 0.5  # what decoding reaches of it
    mean_response: float = 0.5  # mean response length over the longest allowed
    overhead: float = 20.0  # seconds a step for weight sync, rewards, data and, with offloading, copies
    host_bandwidth: float = 200e9  # of a node, bytes/s, where AdamW runs there (28 bytes a parameter and update)


class Hours(NamedTuple):
    """Seconds of a step by part, of a validation, and of a step with its share of these; hours of the run."""

    generation: float
    update: float
    overhead: float
    validation: float
    step: float
    wall_hours: float
    gpu_hours: float


def estimate(shape: Shape, s: Settings, memory: Memory, a: Assumptions) -> Hours:
    mean = a.mean_response * s.response_tokens
    flops = s.responses * (mean + s.prompt_tokens / 2) * training_flops(shape, mean, s.checkpointing)
    generation, update = _generation(shape, s, memory, a, s.responses), flops / (s.gpus * a.flops * a.utilization)
    on_host = 28 * shape.parameters / s.nodes / a.host_bandwidth * s.updates if s.offload_policy else 0
    validation = _generation(shape, s, memory, a, VALIDATION_PROMPTS * s.val_n) if s.test_freq > 0 else 0.0
    step = generation + update + a.overhead + on_host + validation / max(s.test_freq, 1)
    wall = step * s.steps / 3600
    return Hours(generation, update, a.overhead + on_host, validation, step, wall, wall * s.gpus)


def training_flops(shape: Shape, length: float, checkpointing: bool) -> float:
    """Forward, backward, and with checkpointing one more forward, of a token in a sequence of ``length``."""
    forward = 2 * shape.active + 2 * shape.layers * shape.query * length  # causal attention: half of 4 q length
    return forward * (4 if checkpointing else 3)


def _generation(shape: Shape, s: Settings, memory: Memory, a: Assumptions, responses: int) -> float:
    """Seconds to decode: every token reads the weights once a batch and its own cache; the longest goes on alone."""
    mean, prompt = a.mean_response * s.response_tokens, s.prompt_tokens / 2
    each = responses / s.replicas
    together = max(min(each, memory.cache_tokens / (prompt + mean)), 1)
    speed = a.bandwidth * a.bandwidth_share * s.tensor_parallel
    full = (2 * shape.parameters + together * (prompt + mean / 2) * shape.cache_bytes) / speed
    alone = 2 * shape.active / speed
    return each * mean / together * full + (s.response_tokens - mean) * alone
