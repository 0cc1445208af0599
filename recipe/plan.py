"""``python -m recipe.plan [--memory] NAME METHOD OVERRIDE...``: what a run would be, without starting anything."""

import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence

from cppo_verl import paper
from cppo_verl.launch import sizes
from recipe import checks, hours, memory, settings
from recipe.memory import GB
from recipe.methods import METHODS
from recipe.shapes import PAPER_NAMES, Shape, shape_of

TABLE_1_NAMES = {name.lower().replace("-", "_"): name for name in paper.METHODS}
TRAINING_PROMPTS = 17_398  # DAPO-Math-17k without repeated prompts


def report(name: str, method: str, overrides: Sequence[str], gpu_gb: float, shape: Shape) -> Iterator[str]:
    """The lines of a plan; ValueError for overrides that do not make a run."""
    s = settings.read(overrides)
    need = memory.estimate(shape, s, gpu_gb * GB)
    yield f"{name} · METHOD={method}: {METHODS[method].what}"
    yield from _target(name, method)
    yield from _run(shape, s)
    yield ""
    yield from of_memory(need, s, gpu_gb)
    yield ""
    yield from _hours(hours.estimate(shape, s, need), hours.Assumptions())
    yield ""
    yield "overrides of verl.trainer.main_ppo"
    yield from (f"  {text}" for text in overrides)


def _target(name: str, method: str) -> Iterator[str]:
    row = paper.best_avg16().get(TABLE_1_NAMES.get(method, ""), {})
    if name in row:
        score = row[name]
        stop = paper.t_stop()[PAPER_NAMES[name]]
        yield f"the paper's Avg@16 within {stop} steps: " + (paper.COLLAPSE if score is None else f"{score:.2f}")


def _run(shape: Shape, s: settings.Settings) -> Iterator[str]:
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


def of_memory(need: memory.Memory, s: settings.Settings, gpu_gb: float) -> Iterator[str]:
    """The lines about memory."""
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


def _hours(h: hours.Hours, a: hours.Assumptions) -> Iterator[str]:
    yield f"time, estimated: {h.step:.0f} s a step, {h.wall_hours:.0f} h, {h.gpu_hours:,.0f} GPU-hours"
    parts = {"generation": h.generation, "update": h.update, "other": h.overhead, "a validation": h.validation}
    yield "  " + ", ".join(f"{part} {seconds:.0f} s" for part, seconds in parts.items())
    yield (
        f"  assuming H100s ({a.flops / 1e12:.0f} TFLOP/s at {a.utilization:.0%}, {a.bandwidth / 1e12:.2f} TB/s at "
        f"{a.bandwidth_share:.0%}) and responses of {a.mean_response:.0%} of the longest"
    )


def main(arguments: Sequence[str]) -> int:
    """Print the plan, or with ``--memory`` only its memory; 2, and no estimate, when something stands in its way."""
    began = time.monotonic()
    short = arguments[0] == "--memory"
    name, method, *overrides = arguments[1:] if short else arguments
    try:
        gpu_gb = float(os.environ.get("GPU_MEMORY_GB", "80"))
        shape = shape_of(name, str(settings.parse(overrides).get("actor_rollout_ref.model.path", "")))
        heads = sizes.Heads(shape.heads, shape.kv_heads)
        found = checks.on_paper(overrides, heads) or settings.problems(settings.read(overrides))
        if not found:  # what cannot run is not estimated
            s = settings.read(overrides)
            few = of_memory(memory.estimate(shape, s, gpu_gb * GB), s, gpu_gb)
            print("\n".join(few if short else report(name, method, overrides, gpu_gb, shape)), flush=True)
        if short:
            return _refuse(found)
        checked, more = checks.check(overrides, heads)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"\nchecked: {checked}")
    status = _refuse(list(dict.fromkeys([*found, *more])))  # the two readers share rules
    print(f"nothing was started ({time.monotonic() - began:.2f} s)")
    return status


def _refuse(problems: Sequence[str]) -> int:
    """Print them; the exit status that follows."""
    for problem in problems:
        print(f"PROBLEM: {problem}")
    return 2 if problems else 0


if __name__ == "__main__":
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # plan | head
    sys.exit(main(sys.argv[1:]))
