"""``python -m recipe.plan full|memory|config NAME METHOD OVERRIDE...``: what a run would be; starts nothing."""

import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence

from cppo_verl import paper
from cppo_verl.launch import sizes
from cppo_verl.launch.overrides import OverrideError, compose
from recipe import checks, hours, memory, settings
from recipe.memory import GB
from recipe.methods import METHODS
from recipe.shapes import PAPER_NAMES, Shape, shape_of

TRAINING_PROMPTS = 17_398  # DAPO-Math-17k without repeated prompts


def report(
    name: str, method: str, overrides: Sequence[str], s: settings.Settings, shape: Shape, gpu_gb: float
) -> Iterator[str]:
    """The lines of a plan."""
    need, a = memory.estimate(shape, s, gpu_gb * GB), hours.Assumptions()
    h = hours.estimate(shape, s, need, a)
    yield f"{name} · METHOD={method}: {METHODS[method].what}"
    in_paper = {other.lower().replace("-", "_"): other for other in paper.METHODS}.get(method, "")
    if name in (scores := paper.best_avg16().get(in_paper, {})):
        reached = paper.COLLAPSE if scores[name] is None else f"{scores[name]:.2f}"
        yield f"the paper's Avg@16 within {paper.t_stop()[PAPER_NAMES[name]]} steps: {reached}"
    most = s.responses * s.longest
    on_topk = f", at most {most * 130 / 1e9:.1f} GB of top-K a step" if s.estimator == "topk" else ""
    lines = {
        "model": f"{shape.parameters / 1e9:.2f} B parameters, {shape.active / 1e9:.2f} B active a token",
        "GPUs": f"{s.nodes} x {s.gpus_per_node}; SP {s.sequence_parallel}, {s.replicas} x vLLM TP {s.tensor_parallel}",
        "steps": f"{s.steps} ({s.steps * s.prompts / TRAINING_PROMPTS:.1f} passes over {TRAINING_PROMPTS} prompts)",
        "step": f"{s.prompts} prompts x {s.n} = {s.responses} responses; {s.updates} updates of {s.minibatch} prompts",
        "tokens a step": f"at most {most:,} ({s.prompt_tokens} + {s.response_tokens} each)",
        "divergence": s.estimator + on_topk,
        "checkpoint": f"{12 * shape.parameters / 1e9:.0f} GB each",
    }
    yield from (f"  {key:14} {value}" for key, value in lines.items())
    yield ""
    yield from of_memory(need, s, gpu_gb)
    yield f"\ntime, estimated: {h.step:.0f} s a step, {h.wall_hours:.0f} h, {h.gpu_hours:,.0f} GPU-hours"
    parts = {"generation": h.generation, "update": h.update, "other": h.overhead, "a validation": h.validation}
    yield "  " + ", ".join(f"{part} {seconds:.0f} s" for part, seconds in parts.items())
    yield (
        f"  assuming H100s ({a.flops / 1e12:.0f} TFLOP/s at {a.utilization:.0%}, {a.bandwidth / 1e12:.2f} TB/s at "
        f"{a.bandwidth_share:.0%}) and responses of {a.mean_response:.0%} of the longest"
    )
    yield "\noverrides of verl.trainer.main_ppo"
    yield from (f"  {text}" for text in overrides)


def of_memory(need: memory.Memory, s: settings.Settings, gpu_gb: float) -> Iterator[str]:
    yield f"memory of a GPU in GB, estimated (of {gpu_gb:g})"
    for phase, parts in (("training", need.training), ("rollout", need.rollout)):
        yield f"  {phase:38}{sum(parts.values()) / GB:6.1f}"
        yield from (f"    {part:36}{size / GB:6.1f}" for part, size in parts.items() if size)
    full = need.cache_tokens // s.longest
    yield f"  KV cache of a replica: {need.cache_tokens:,} tokens, {full} sequences of full length"
    if need.host:
        yield f"  host memory of a node for offloading: {need.host / GB:.0f} GB"
    over = need.peak / GB - gpu_gb
    yield f"  {'fits' if over <= 0 else 'DOES NOT FIT'}: {abs(over):.1f} GB {'to spare' if over <= 0 else 'too much'}"


def plan(how: str, name: str, method: str, *overrides: str) -> int:
    """Print it, of ``memory`` only that part; 2, and no estimate, when something stands in its way.

    Raises:
        ValueError: for overrides that do not make a run.
    """
    began = time.monotonic()
    gpu_gb = float(os.environ.get("GPU_MEMORY_GB", "80"))
    values = settings.parse(overrides)
    shape = shape_of(name, str(values.get("actor_rollout_ref.model.path", "")))
    found = list(sizes.problems(values, sizes.Heads(shape.heads, shape.kv_heads)))
    s = None if found else settings.read(values)
    if s and s.prompts % s.minibatch:  # what a run would survive, but no longer as the paper's
        remainder = f"PROMPTS={s.prompts} is no multiple of MINIBATCH={s.minibatch}"
        found = [f"{remainder}: verl fills up with empty rows, which makes updates smaller."]
    if s and not found:  # what cannot run is not estimated
        few = of_memory(memory.estimate(shape, s, gpu_gb * GB), s, gpu_gb)
        print("\n".join(few if how == "memory" else report(name, method, overrides, s, shape, gpu_gb)), flush=True)
    if how == "full":
        checked, more = checks.check(overrides)
        print(f"\nchecked: {checked}")
        found = list(dict.fromkeys([*found, *more]))  # the run's own checks look at sizes too
    for problem in found:
        print(f"PROBLEM: {problem}")
    if how == "full":
        print(f"nothing was started ({time.monotonic() - began:.2f} s)")
    return 2 if found else 0


def print_config(overrides: Sequence[str]) -> None:
    """verl's config as a run would see it, without importing verl."""
    try:
        config = compose(overrides)
    except OverrideError as error:
        sys.exit(str(error))
    from omegaconf import OmegaConf  # which a plan does without

    OmegaConf.resolve(config)
    print(OmegaConf.to_yaml(config), end="")


if __name__ == "__main__":
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # plan | head
    if sys.argv[1] == "config":
        print_config(sys.argv[4:])
        sys.exit()
    try:
        sys.exit(plan(*sys.argv[1:]))
    except ValueError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
