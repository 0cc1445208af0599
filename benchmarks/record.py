"""What recording costs: time in the worker and in the trainer's process, bytes a token, and its share of a run's steps.

    python -m benchmarks.record                     # 16 responses x 2048 tokens, all of them recorded
    python -m benchmarks.record --run runs/...      # timing_s/record beside timing_s/step, from a run's logs

The worker's part is the loss that the trainer installs, forward and backward and without the model, with and without
marked rows in turn, in one run. All rows are marked, where a real micro-batch has few.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from transfer_queue import KVBatchMeta
from transformers import AutoTokenizer
from verl.utils import tensordict_utils
from verl.workers.config import ActorConfig

from benchmarks.load import save_byte_tokenizer
from cppo_verl import jsonlines, presets
from cppo_verl.integration import looks, losses, recorder
from cppo_verl.integration.config import TrustRegionLossConfig
from cppo_verl.recording import files
from cppo_verl.selftest.timing import timed

CPU = torch.device("cpu")
PROMPT = 64
VOCABULARY = 256  # of bytes


def nested(x: torch.Tensor) -> torch.Tensor:
    return torch.nested.as_nested_tensor(list(x.contiguous()), layout=torch.jagged)


def micro_batch(rows: int, length: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """A model's log-probs of packed sequences and what travels beside them, as verl's engine hands both to the loss."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(VOCABULARY, (rows, PROMPT + length), generator=generator)
    confident = torch.rand(rows, length, generator=generator) < 0.6
    log_mu = -torch.where(confident, 1e-3, 1.5) * torch.empty(rows, length).exponential_(generator=generator)
    drift = torch.randn(rows, length, generator=generator).mul_(0.05)
    columns = {
        "prompts": ids[:, :PROMPT],
        "responses": ids[:, PROMPT:],
        "response_mask": torch.ones(rows, length, dtype=torch.bool),
        "old_log_probs": log_mu,
        "advantages": torch.randn(rows, 1, generator=generator).expand(rows, length),
    }
    return (log_mu * drift.exp()).clamp_max_(-1e-7), {name: nested(x) for name, x in columns.items()}


def worker(log_pi: torch.Tensor, columns: dict[str, torch.Tensor], rounds: int) -> tuple[list[float], dict[int, Any]]:
    """Median seconds of the loss without and with marked rows, and what it saw of them."""
    rows, length = log_pi.shape
    knobs = TrustRegionLossConfig(max_response_length=length)
    options: dict[str, Any] = {"loss_agg_mode": "seq-mean-token-sum-norm", "loss_scale_factor": length}
    actor = ActorConfig(strategy="fsdp", rollout_n=8, use_dynamic_bsz=True, policy_loss=knobs, **options)
    info = {"dp_size": 1, "batch_num_tokens": rows * length, "global_batch_size": rows}
    seen: list[dict[int, Any]] = []

    def step(marks: dict[str, torch.Tensor]) -> None:
        log_probs = torch.nn.functional.pad(log_pi, (PROMPT - 1, 1)).requires_grad_()
        data = tensordict_utils.get_tensordict({**columns, **marks}, info)
        loss, reported = losses.trust_region_loss(actor, {"log_probs": nested(log_probs)}, data)
        loss.backward()
        seen[:] = reported.get(looks.METRIC, [])

    both: list[dict[str, torch.Tensor]] = [{}, {looks.FIELD: torch.arange(rows)}]
    seconds = [[timed(lambda marks=marks: step(marks), CPU) for marks in both] for _ in range(rounds + 1)][1:]
    return [statistics.median(column) for column in zip(*seconds, strict=True)], seen[0]


def driver(columns: dict[str, torch.Tensor], seen: dict[int, Any], folder: Path, rounds: int) -> tuple[float, Path]:
    """Median seconds of writing the record in the trainer's process (TransferQueue apart), and its file."""
    save_byte_tokenizer(folder)
    held = {**columns, "rm_scores": columns["old_log_probs"]}
    recorder.tq = SimpleNamespace(  # type: ignore[assignment]
        kv_batch_put=lambda **_: None,
        kv_batch_get=lambda keys, partition_id, select_fields: {name: held[name] for name in select_fields},
    )
    settings = ["trainer.v1.trust_region.record=4096", f"trainer.default_local_dir={folder}/checkpoints"]
    one = recorder.Recorder(presets.compose("cppo", settings), AutoTokenizer.from_pretrained(folder))
    keys = [f"prompt-{row // 8}_{row % 8}_0" for row in range(len(seen))]
    info = {"mini_batch_size": len(keys), "epochs": 1}
    meta = KVBatchMeta(keys=keys, tags=[{"min_global_steps": 0}] * len(keys), partition_id="train", extra_info=info)
    _, drawn = one.mark(meta, recorder.Call(1, {}, set(), 1))
    assert drawn is not None
    seconds = statistics.median(timed(lambda: one.write(drawn, [seen], "train"), CPU) for _ in range(rounds))
    return seconds, files.path_of(folder, 1)


def of_run(run: Path) -> str:
    """How much of its steps a run spent on its records, by its own log."""
    found = [record["data"] for path in (run / "logs").glob("metrics-*.jsonl") for record in jsonlines.read(path)[0]]
    pairs = [(data["timing_s/record"], data["timing_s/step"]) for data in found if "timing_s/record" in data]
    sizes = [path.stat().st_size for path in files.steps(run).values()]
    return (
        f"{run.name}: {1000 * statistics.median(x for x, _ in pairs):.1f} ms a step, "
        f"{100 * statistics.median(x / step for x, step in pairs):.2f}% of it (medians of {len(pairs)} steps); "
        f"{statistics.median(sizes) / 1024:.1f} KiB a step"
    )


def main() -> None:
    """Print a line for each part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--run", type=Path, nargs="+", help="only what these runs logged")
    args = parser.parse_args()
    if args.run:
        print("\n".join(map(of_run, args.run)))
        return
    tokens = args.rows * args.length
    print(f"torch {torch.__version__}, CPU, {torch.get_num_threads()} threads, {args.rows} x {args.length} recorded")
    log_pi, columns = micro_batch(args.rows, args.length)
    (without, recording), seen = worker(log_pi, columns, args.rounds)
    print(
        f"worker: loss {1000 * without:.1f} ms without, {1000 * recording:.1f} ms with (x {recording / without:.2f}), "
        f"{1e6 * (recording - without) / tokens:.2f} microseconds a recorded token"
    )
    with tempfile.TemporaryDirectory() as folder:
        seconds, path = driver(columns, seen, Path(folder), args.rounds)
        record, size = files.read(path), path.stat().st_size
    print(f"trainer's process: {1000 * seconds:.0f} ms a step, {1e6 * seconds / tokens:.1f} microseconds a token")
    text = sum(len(response.text.encode()) for response in record.responses)
    sent = sum(value.nbytes for row in seen.values() for value in row.values() if isinstance(value, np.ndarray))
    print(f"file: {size / tokens:.1f} bytes a token, {text / tokens:.1f} of text in it; sent home: {sent / tokens:.1f}")


if __name__ == "__main__":
    sys.exit(main())
