"""What has been tried of verl's engines and rollouts, and what the start says about the rest.

A rule itself needs of an engine only the sampled tokens' log-probs, and of a rollout those that it sampled with. The
top-K estimator also needs the engine's logits and the rollout's K log-probs a token.
"""

from collections.abc import Iterator

from omegaconf import DictConfig, OmegaConf

from cppo_verl.launch import sizes
from cppo_verl.trust_region.knobs import KEY_PREFIX

ROLLOUT = "actor_rollout_ref.rollout.name"
GAP = "actor/trust_region/first_update/divergence_mean"
# Seen: the whole stack with fsdp2 and vLLM, and two ranks of both FSDP side by side with the plain model, on the CPU.
WORKS = ("fsdp2", "fsdp", "vllm")
UNTRIED = {  # as a whole, and what was seen of it
    "megatron": "its loss gives FSDP's numbers through verl's Megatron class, on the CPU",
    "veomni": "its loss gives FSDP's numbers through verl's VeOmni class, on the CPU",
    "torchtitan": "its loss gives FSDP's numbers in verl's torchtitan layout, on the CPU",
    "sglang": "its log-probs are the sampling policy's unless SGLANG_RETURN_ORIGINAL_LOGPROB is set",
    "trtllm": "nothing is known of its log-probs",
}


def problems(config: DictConfig) -> Iterator[str]:
    """One sentence for each thing that the run's engine or rollout cannot do."""
    strategy, rollout, estimator = _read(config)
    for key, value, able, why in (
        (ROLLOUT, rollout, ("vllm",), "only vLLM's server can be asked for top-K log-probs"),
        (sizes.STRATEGY, strategy, sizes.FSDP, "the top-K estimator takes its logits from verl's FSDP engines alone"),
    ):
        if estimator == "topk" and value not in able:
            yield (
                f"{key}={value} with {KEY_PREFIX}.estimator=topk: {why}; set it to {' or '.join(able)}, or "
                f"{KEY_PREFIX}.estimator=binary."
            )
    if strategy == "megatron" and OmegaConf.select(config, f"{KEY_PREFIX}.on_nonfinite") == "skip":
        yield (
            f"{KEY_PREFIX}.on_nonfinite=skip with {sizes.STRATEGY}=megatron: its optimizer does not look whether the "
            "gradient is finite before it steps; set on_nonfinite=raise, or train with fsdp2."
        )


def notes(config: DictConfig) -> Iterator[str]:
    """One line when nobody has run this combination as a whole yet; nothing when it is known to work, or refused."""
    strategy, rollout, estimator = _read(config)
    basis = [
        f"{name}: {UNTRIED.get(name, 'nothing of it was tried')}" for name in (strategy, rollout) if name not in WORKS
    ]
    if basis and estimator != "topk":
        yield (
            f"{sizes.STRATEGY}={strategy} with {ROLLOUT}={rollout}: nobody has run this yet ({'; '.join(basis)}). At "
            f"the first steps look at {GAP}: near 0 it says that both sides' log-probs are of the same policy."
        )


def _read(config: DictConfig) -> tuple[str, str, str]:
    defaults = {sizes.STRATEGY: "fsdp", ROLLOUT: "vllm", f"{KEY_PREFIX}.estimator": "binary"}
    strategy, rollout, estimator = (str(OmegaConf.select(config, key) or value) for key, value in defaults.items())
    return strategy, rollout, estimator
