"""The whole evaluation: find, read, generate what is missing, score, write."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from cppo_verl.evaluation import EvaluationError, checkpoint, engine, problems, scoring, settings, store, tables
from cppo_verl.integration import cpu

Say = Callable[[str], None]


@dataclass(frozen=True)
class Request:
    """What the command line asks for; None and empty mean: as the run's config says, else the default."""

    model: str
    data: list[Path] = field(default_factory=list)
    out: Path | None = None
    sampling: dict[str, Any] = field(default_factory=dict)
    reward: settings.Reward | None = None
    options: engine.EngineOptions = field(default_factory=engine.EngineOptions)
    part_size: int = 8
    fresh: bool = False


def evaluate(request: Request, say: Say = print) -> dict[str, Any]:
    """Evaluate, writing all results under the output folder; returns the summary (see ``tables.summarise``)."""
    if request.part_size < 1:
        raise EvaluationError(f"--part-size {request.part_size}: give 1 or more problems")
    source = checkpoint.locate(request.model)
    config = settings.read_run_config(source.run_dir / "config.yaml" if source.run_dir else None)
    sampling = _sampling(request.sampling, config)
    files = request.data or [Path(file) for file in config.val_files]
    if not files:
        raise EvaluationError(f"no data: give parquet or jsonl files in --data ({source.name} has no run config)")
    rows = problems.read(files)
    scorer = scoring.load(request.reward or config.reward)
    scoring.check(scorer, rows)
    out = request.out or default_out(source)
    options = replace(request.options, trust_remote_code=request.options.trust_remote_code or config.trust_remote_code)
    depends = {"model": source.fingerprint(), "data": [problems.sha256(file) for file in files], **asdict(sampling)}
    with store.Store(out, depends, request.fresh) as saved:
        _generate_missing(source, rows, sampling, options, saved, request.part_size, say)
        scores = [scoring.score(scorer, rows[response.row], response) for response in saved.responses()]
        samples = tables.samples_of(rows, scores)
        summary = {"model": request.model, "folder": str(source.folder), "settings": depends}
        summary |= tables.summarise(samples)
        paths = tables.write(out, summary, rows, samples)
    say(tables.console(summary))
    say("\n".join(map(str, paths)))
    return summary


def default_out(source: checkpoint.Source) -> Path:
    """RUN/eval/global_step_N for a checkpoint of a run, eval/NAME here for any other model."""
    return (source.run_dir or Path.cwd()) / "eval" / source.name


def _sampling(given: dict[str, Any], config: settings.RunConfig) -> settings.Sampling:
    default = {"dtype": "float32" if cpu.enabled() else "bfloat16"}
    chosen = {key: value for key, value in given.items() if value is not None}
    return settings.Sampling(**{**default, **config.sampling, **chosen})


def _generate_missing(
    source: checkpoint.Source, rows: Sequence[problems.Problem], sampling: settings.Sampling,
    options: engine.EngineOptions, saved: store.Store, part_size: int, say: Say,
) -> None:  # fmt: skip
    done = {response.row for response in saved.responses()}
    missing = [problem for problem in rows if problem.row not in done]
    if done:
        say(f"{len(done)} of {len(rows)} problems are there already")
    if not missing:
        return
    config = source.actor / "huggingface" if source.actor else source.folder
    prompts = engine.tokenise(missing, config, sampling, options.trust_remote_code)
    if source.actor:
        say(f"merging the shards of {source.actor}")
    folder = checkpoint.prepare(source, saved.out, sampling.dtype, options.trust_remote_code)
    say(f"starting vLLM for {len(missing)} problems, {sampling.n} samples each")
    running = engine.start(folder, prompts, sampling, options)
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
