"""What recording costs: time in the worker and in the trainer's process, bytes a token, and its share of a run's steps.

    python -m benchmarks.record                     # 16 responses x 2048 tokens, all of them recorded
    python -m benchmarks.record --run runs/...      # timing_s/record beside timing_s/step, from a run's logs

The worker's part is the loss that the trainer installs, forward and backward and without the model, with and without
marked rows in turn, in one run. All rows are marked, where a real micro-batch has few.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor
from transfer_queue import KVBatchMeta
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from verl.utils import tensordict_utils
from verl.workers.config import ActorConfig

from benchmarks.load import save_byte_tokenizer
from cppo_verl import presets
from cppo_verl.integration import looks, losses, recorder
from cppo_verl.integration.config import TrustRegionLossConfig
from cppo_verl.recording import files
from cppo_verl.recording.record import StepRecord
from cppo_verl.selftest.timing import timed

CPU = torch.device("cpu")
PROMPT = 64
VOCABULARY = 256  # of bytes


class Batch:
    """A micro-batch of packed sequences with a model's log-probs, as verl's engine hands it to the loss."""

    def __init__(self, rows: int, length: int):
        generator = torch.Generator().manual_seed(0)
        self.rows, self.length = rows, length
        self.ids = torch.randint(VOCABULARY, (rows, PROMPT + length), generator=generator)
        confident = torch.rand(rows, length, generator=generator) < 0.6
        self.log_mu = -torch.where(confident, 1e-3, 1.5) * torch.empty(rows, length).exponential_(generator=generator)
        drift = torch.randn(rows, length, generator=generator).mul_(0.05)
        self.log_pi = (self.log_mu * drift.exp()).clamp_max_(-1e-7)
        self.advantages = torch.randn(rows, 1, generator=generator).expand(rows, length)

    def data(self, marked: bool) -> TensorDict:
        """What travels beside the log-probs."""
        tensors = {
            "prompts": nested(self.ids[:, :PROMPT]),
            "responses": nested(self.ids[:, PROMPT:]),
            "response_mask": nested(torch.ones(self.rows, self.length, dtype=torch.bool)),
            "old_log_probs": nested(self.log_mu),
            "advantages": nested(self.advantages),
        }
        if marked:
            tensors[looks.FIELD] = torch.arange(self.rows)
        info = {"dp_size": 1, "batch_num_tokens": self.rows * self.length, "global_batch_size": self.rows}
        return tensordict_utils.get_tensordict(tensors, info)


def nested(x: Tensor) -> Tensor:
    return torch.nested.as_nested_tensor(list(x.contiguous()), layout=torch.jagged)


def loss_step(batch: Batch, actor: ActorConfig) -> Callable[[bool], dict]:
    """Forward and backward of the loss; what comes back are the metrics."""

    def step(marked: bool) -> dict:
        log_probs = torch.nn.functional.pad(batch.log_pi, (PROMPT - 1, 1)).requires_grad_()
        loss, reported = losses.trust_region_loss(actor, {"log_probs": nested(log_probs)}, batch.data(marked))
        loss.backward()
        return reported

    return step


def in_turns(step: Callable[[bool], dict], rounds: int) -> tuple[float, float]:
    """Median seconds without and with marked rows."""
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for marked in (False, True):
        step(marked)
    for _ in range(rounds):
        for marked in (False, True):
            seconds[marked].append(timed(lambda marked=marked: step(marked), CPU))
    return statistics.median(seconds[False]), statistics.median(seconds[True])


def driver(batch: Batch, seen: dict, tokenizer: PreTrainedTokenizerBase, rounds: int) -> tuple[float, StepRecord, Path]:
    """Median seconds of writing the record in the trainer's process, the record and its file (TransferQueue apart)."""
    folder = Path(tempfile.mkdtemp())
    config = presets.compose(
        "cppo", ["trainer.v1.trust_region.record=16", f"trainer.default_local_dir={folder}/checkpoints"]
    )
    rows = [
        {"prompts": ids[:PROMPT], "responses": ids[PROMPT:], "rm_scores": torch.zeros(batch.length)}
        for ids in batch.ids
    ]
    keys = [f"prompt-{row // 8}_{row % 8}_0" for row in range(batch.rows)]

    class Queue:
        """TransferQueue's answer, at hand."""

        @staticmethod
        def kv_batch_get(keys, partition_id, select_fields):
            return TensorDict(
                {name: nested(torch.stack([row[name] for row in rows])) for name in select_fields}, len(rows)
            )

        @staticmethod
        def kv_batch_put(**_):
            return None

    recorder.tq = Queue  # type: ignore[assignment]
    one = recorder.Recorder(config, tokenizer)
    one.wanted = batch.rows
    info = {"mini_batch_size": batch.rows, "epochs": 1}
    meta = KVBatchMeta(keys=keys, tags=[{"min_global_steps": 0}] * len(keys), partition_id="train", extra_info=info)
    _, drawn = one.mark(meta, recorder.Call(1, {}, set(), 1))
    assert drawn is not None
    seconds = statistics.median(timed(lambda: one.write(drawn, [seen], "train"), CPU) for _ in range(rounds))
    path = files.path_of(folder, 1)
    return seconds, files.read(path), path


def of_run(run: Path) -> str:
    """How much of its steps a run spent on its records, by its own log."""
    shares, seconds = [], []
    for path in sorted((run / "logs").glob("metrics-*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            data = json.loads(line)["data"]
            if "timing_s/record" in data:
                seconds.append(data["timing_s/record"])
                shares.append(data["timing_s/record"] / data["timing_s/step"])
    sizes = [path.stat().st_size for path in files.steps(run).values()]
    return (
        f"{run.name}: {1000 * statistics.median(seconds):.1f} ms a step, {100 * statistics.median(shares):.2f}% of it "
        f"(medians of {len(shares)} steps); {statistics.median(sizes) / 1024:.1f} KiB a step"
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
    knobs = TrustRegionLossConfig(max_response_length=args.length)
    actor = ActorConfig(
        strategy="fsdp",
        rollout_n=8,
        use_dynamic_bsz=True,
        loss_agg_mode="seq-mean-token-sum-norm",
        loss_scale_factor=args.length,
        policy_loss=knobs,
    )
    batch = Batch(args.rows, args.length)
    tokens = args.rows * args.length
    print(f"torch {torch.__version__}, CPU, {torch.get_num_threads()} threads, {args.rows} x {args.length} recorded")
    step = loss_step(batch, actor)
    without, recording = in_turns(step, args.rounds)
    print(
        f"worker: loss {1000 * without:.1f} ms without, {1000 * recording:.1f} ms with (x {recording / without:.2f}), "
        f"{1e6 * (recording - without) / tokens:.2f} microseconds a recorded token"
    )
    (seen,) = step(True)[looks.METRIC]
    with tempfile.TemporaryDirectory() as folder:
        save_byte_tokenizer(Path(folder))
        seconds, record, path = driver(batch, seen, AutoTokenizer.from_pretrained(folder), args.rounds)
    print(f"trainer's process: {1000 * seconds:.0f} ms a step, {1e6 * seconds / tokens:.1f} microseconds a token")
    text = sum(len(piece.encode()) for response in record.responses for piece in response.pieces)
    sent = sum(value.nbytes for row in seen.values() for value in row.values() if isinstance(value, np.ndarray))
    size = path.stat().st_size
    print(f"file: {size / tokens:.1f} bytes a token, {text / tokens:.1f} of text in it; sent home: {sent / tokens:.1f}")


if __name__ == "__main__":
    sys.exit(main())
