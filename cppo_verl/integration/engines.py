"""What has been tried of verl's engines and rollouts, and what the start says about the rest.

A rule itself needs of an engine only the sampled tokens' log-probs, and of a rollout those that it sampled with. The
top-K estimator also needs the engine's logits and the rollout's K log-probs a token.
"""

from collections.abc import Iterator
from enum import StrEnum

from omegaconf import DictConfig, OmegaConf

from cppo_verl.launch import sizes
from cppo_verl.trust_region.knobs import KEY_PREFIX

ROLLOUT = "actor_rollout_ref.rollout.name"
GAP = "actor/trust_region/first_update/divergence_mean"


class State(StrEnum):
    """Of a combination: seen to work as a whole, started by nobody yet, or refused."""

    WORKS = "works"
    UNTRIED = "untried"
    REFUSED = "refused"


# What was seen of each strategy: the whole stack, or the loss behind verl's own engine class.
ENGINES = {
    "fsdp2": (State.WORKS, "the whole stack and two ranks side by side with the plain model, on the CPU"),
    "fsdp": (State.WORKS, "two ranks side by side with the plain model, on the CPU"),
    "megatron": (State.UNTRIED, "its loss gives FSDP's numbers through verl's Megatron class, on the CPU"),
    "veomni": (State.UNTRIED, "its loss gives FSDP's numbers through verl's VeOmni class, on the CPU"),
    "torchtitan": (State.UNTRIED, "its loss gives FSDP's numbers in verl's torchtitan layout, on the CPU"),
}
ROLLOUTS = {
    "vllm": (State.WORKS, "the whole stack, on the CPU"),
    "sglang": (
        State.UNTRIED,
        "its log-probs are the sampling policy's unless SGLANG_RETURN_ORIGINAL_LOGPROB is set",
    ),
    "trtllm": (State.UNTRIED, "nothing is known of its log-probs"),
}
UNKNOWN = (State.UNTRIED, "nothing of it was tried")


def status(strategy: str, rollout: str, estimator: str = "binary") -> tuple[State, str]:
    """How far a combination has been tried, and by what.

    Args:
        strategy: ``actor.strategy``. rollout: ``rollout.name``. estimator: ``policy_loss.estimator``.

    Returns:
        The state, and what it rests on or, where refused, why.
    """
    if estimator == "topk" and rollout != "vllm":
        return State.REFUSED, "only vLLM's server can be asked for top-K log-probs"
    if estimator == "topk" and strategy not in sizes.FSDP:
        return State.REFUSED, "the top-K estimator takes its logits from verl's FSDP engines alone"
    seen = {strategy: ENGINES.get(strategy, UNKNOWN), rollout: ROLLOUTS.get(rollout, UNKNOWN)}
    untried = {name: basis for name, (state, basis) in seen.items() if state is State.UNTRIED}
    state = State.UNTRIED if untried else State.WORKS
    return state, "; ".join(f"{name}: {basis}" for name, basis in (untried or seen).items())


def problems(config: DictConfig) -> Iterator[str]:
    """One sentence for each thing that the run's engine or rollout cannot do."""
    strategy, rollout, estimator = _read(config)
    state, why = status(strategy, rollout, estimator)
    if state is State.REFUSED:
        key, value, remedy = (
            (ROLLOUT, rollout, "vllm") if rollout != "vllm" else (sizes.STRATEGY, strategy, " or ".join(sizes.FSDP))
        )
        yield (
            f"{key}={value} with {KEY_PREFIX}.estimator=topk: {why}; set it to {remedy}, or {KEY_PREFIX}.estimator="
            "binary."
        )
    if strategy == "megatron" and OmegaConf.select(config, f"{KEY_PREFIX}.on_nonfinite") == "skip":
        yield (
            f"{KEY_PREFIX}.on_nonfinite=skip with {sizes.STRATEGY}=megatron: its optimizer does not look whether the "
            "gradient is finite before it steps; set on_nonfinite=raise, or train with fsdp2."
        )


def notes(config: DictConfig) -> Iterator[str]:
    """One line when nobody has run this combination as a whole yet; nothing when it is known to work."""
    strategy, rollout, estimator = _read(config)
    state, basis = status(strategy, rollout, estimator)
    if state is State.UNTRIED:
        yield (
            f"{sizes.STRATEGY}={strategy} with {ROLLOUT}={rollout}: nobody has run this yet ({basis}). At the first "
            f"steps look at {GAP}: near 0 it says that both sides' log-probs are of the same policy."
        )


def _read(config: DictConfig) -> tuple[str, str, str]:
    defaults = {sizes.STRATEGY: "fsdp", ROLLOUT: "vllm", f"{KEY_PREFIX}.estimator": "binary"}
    strategy, rollout, estimator = (str(OmegaConf.select(config, key) or value) for key, value in defaults.items())
    return strategy, rollout, estimator
