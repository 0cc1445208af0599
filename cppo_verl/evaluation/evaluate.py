"""The whole evaluation: find, read, generate what is missing, score, write."""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cppo_verl.evaluation import EvaluationError, checkpoint, engine, problems, scoring, settings, store, tables
from cppo_verl.integration import cpu

Say = Callable[[str], None]


def evaluate(
    model: str, data: Sequence[Path] = (), out: Path | None = None, sampling: Mapping[str, Any] | None = None,
    reward: settings.Reward | None = None, vllm: Mapping[str, Any] | None = None, trust_remote_code: bool = False,
    part_size: int = 8, fresh: bool = False, say: Say = print,
) -> dict[str, Any]:  # fmt: skip
    """Evaluate, writing all results under the output folder; returns the summary (see ``tables.summarise``).

    Args:
        model: what ``checkpoint.locate`` finds. data, reward: those of the run's config where none are given.
        out: default ``default_out``. sampling: fields of ``settings.Sampling``, over the run's config and the defaults.
        vllm: further arguments of ``vllm.LLM``. part_size: problems saved at a time.
        fresh: throw away the responses that ``out`` holds.

    Raises:
        EvaluationError: something that the user can put right.
    """
    source = checkpoint.locate(model)
    config = settings.read_run_config(source.run_dir / "config.yaml" if source.run_dir else None)
    chosen = sampling_of(sampling or {}, config)
    files = data or [Path(file) for file in config.val_files]
    if not files:
        raise EvaluationError(f"no data: give parquet or jsonl files in --data ({source.name} has no run config)")
    rows = problems.read(files)
    scorer = scoring.load(reward or config.reward)
    scoring.check(scorer, rows)
    out, trust = out or default_out(source), trust_remote_code or config.trust_remote_code
    hashes = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    depends = {"model": source.fingerprint(), "data": hashes, **asdict(chosen)}
    with store.opened(out, depends, fresh) as saved:
        done = {response.row for response in saved.responses()}
        if done:
            say(f"{len(done)} of {len(rows)} problems are there already")
        if missing := [problem for problem in rows if problem.row not in done]:
            _generate(missing, source, chosen, vllm or {}, trust, saved, part_size, say)
        scores = [scoring.score(scorer, rows[response.row], response) for response in saved.responses()]
        samples = tables.samples_of(rows, scores)
        summary = {"model": model, "folder": str(source.actor or source.folder), "settings": depends}
        summary |= tables.summarise(samples)
        paths = tables.write(out, summary, rows, samples)
    say(tables.console(summary))
    say("\n".join(map(str, paths)))
    return summary


def default_out(source: checkpoint.Source) -> Path:
    """RUN/eval/global_step_N for a checkpoint of a run, eval/NAME here for any other model."""
    return (source.run_dir or Path.cwd()) / "eval" / source.name


def sampling_of(given: Mapping[str, Any], config: settings.RunConfig) -> settings.Sampling:
    """What is given (None is not) over the run's config, over the defaults."""
    default = {"dtype": "float32" if cpu.enabled() else "bfloat16"}
    chosen = {key: value for key, value in given.items() if value is not None}
    made = settings.Sampling(**{**default, **config.sampling, **chosen})
    if made.temperature == 0 and made.n > 1:
        raise EvaluationError(f"--n {made.n}: temperature 0 gives equal samples, so give --n 1")
    return made


def _generate(
    missing: Sequence[problems.Problem], source: checkpoint.Source, sampling: settings.Sampling,
    vllm: Mapping[str, Any], trust_remote_code: bool, saved: store.Store, part_size: int, say: Say,
) -> None:  # fmt: skip
    engine.parameters(sampling, 0, sampling.max_response_length)  # what vLLM refuses is said before shards are merged
    prompts = engine.tokenise(missing, source.folder, sampling, trust_remote_code)
    if source.actor:
        say(f"merging the shards of {source.actor}")
    folder = checkpoint.prepare(source, saved.out, sampling.dtype, trust_remote_code)
    say(f"starting vLLM for {len(missing)} problems, {sampling.n} samples each")
    running = engine.start(folder, prompts, sampling, {"trust_remote_code": trust_remote_code, **vllm})
    began, tokens = time.monotonic(), 0
    waiting: list[store.Response] = []
    for count, responses in enumerate(engine.generate(running, prompts, sampling), start=1):
        waiting += responses
        if count % part_size == 0 or count == len(missing):
            saved.append(waiting)
            tokens += sum(response.tokens for response in waiting)
            waiting, seconds = [], time.monotonic() - began
            say(
                f"[{seconds:6.0f} s] {count}/{len(missing)} problems saved, {tokens / seconds:.0f} tokens a second, "
                f"{seconds / count * (len(missing) - count):.0f} s to go"
            )
