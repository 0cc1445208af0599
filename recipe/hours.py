"""GPU-hours on paper: a roofline with stated efficiencies. Good for an order of magnitude, no promise."""

from dataclasses import dataclass

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


@dataclass(frozen=True)
class Hours:
    """Seconds of a step by part; those of a validation, which comes every ``test_freq`` steps."""

    generation: float
    update: float
    overhead: float
    validation: float
    steps: int
    test_freq: int
    gpus: int

    @property
    def step(self) -> float:  # with its share of the validations
        return self.generation + self.update + self.overhead + self.validation / max(self.test_freq, 1)

    @property
    def wall_hours(self) -> float:
        return self.step * self.steps / 3600

    @property
    def gpu_hours(self) -> float:
        return self.wall_hours * self.gpus


def estimate(shape: Shape, s: Settings, memory: Memory, a: Assumptions | None = None) -> Hours:
    """Seconds and hours of a run."""
    a = a or Assumptions()
    mean = a.mean_response * s.response_tokens
    flops = s.responses * (mean + s.prompt_tokens / 2) * training_flops(shape, mean, s.checkpointing)
    validations = VALIDATION_PROMPTS * s.val_n if s.test_freq > 0 else 0
    on_host = 28 * shape.parameters / s.nodes / a.host_bandwidth * s.updates if s.offload_policy else 0
    return Hours(
        generation=_generation(shape, s, memory, a, s.responses),
        update=flops / (s.gpus * a.flops * a.utilization),
        overhead=a.overhead + on_host,
        validation=_generation(shape, s, memory, a, validations),
        steps=s.steps,
        test_freq=s.test_freq,
        gpus=s.gpus,
    )


def training_flops(shape: Shape, length: float, checkpointing: bool) -> float:
    """Forward, backward, and with checkpointing one more forward, of a token in a sequence of ``length``."""
    forward = 2 * shape.active + 2 * shape.layers * shape.query * length  # causal attention: half of 4 q length
    return forward * (4 if checkpointing else 3)


def _generation(shape: Shape, s: Settings, memory: Memory, a: Assumptions, responses: int) -> float:
    """Seconds to decode: every token reads the weights once a batch and its own cache; the longest goes on alone."""
    if not responses:
        return 0.0
    mean, prompt = a.mean_response * s.response_tokens, s.prompt_tokens / 2
    each = responses / s.replicas
    together = max(min(each, memory.cache_tokens / (prompt + mean)), 1)
    speed = a.bandwidth * a.bandwidth_share * s.tensor_parallel
    full = (2 * shape.parameters + together * (prompt + mean / 2) * shape.cache_bytes) / speed
    alone = 2 * shape.active / speed
    return each * mean / together * full + (s.response_tokens - mean) * alone
