"""``cppo-verl run [--fresh] RUN_DIR OVERRIDE...``: verl's own trainer, watched, with all it writes in one folder."""

import argparse
import contextlib
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from omegaconf import OmegaConf

from cppo_verl import atomic
from cppo_verl.integration.cpu import fork_server
from cppo_verl.launch import checkpoints, command_line, exposure, gitstate, slow_start, supervise

REWARD = "critic/score/mean"
ALARM = b"TRUST REGION ALARM"  # as cppo_verl.integration.alarms marks them
MASKED = "actor/trust_region/masked_share"


def add_parser(subparsers) -> None:
    """Add ``run`` to the command line."""
    parser = subparsers.add_parser("run", help="start verl's trainer with a run directory, progress and a watchdog")
    parser.add_argument("run_dir", type=Path, help="logs, checkpoints and the report go here; an existing run resumes")
    parser.add_argument("--fresh", action="store_true", help="delete what the run directory holds and start anew")
    parser.add_argument(
        "--stall-timeout", type=float, default=1800.0, help="seconds without output = hung (%(default)s)"
    )
    parser.add_argument("--check", action="store_true", help="only look at preset and knobs, and start nothing")
    parser.add_argument("overrides", nargs="*", help="Hydra overrides for verl.trainer.main_ppo")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Start or resume the run; 0 when it reached its last step."""
    problems = command_line.problems(args.overrides)
    if problems or args.check:
        print("\n".join(problems), file=sys.stderr, flush=True)
        return 2 if problems else 0
    run_dir = args.run_dir.resolve()
    try:
        return _run(run_dir, args)
    except (supervise.RunFailed, supervise.AlreadyRunning, checkpoints.CheckpointError, OSError) as error:
        print(f"\ncppo-verl run: {error}", file=sys.stderr, flush=True)
        return 1


def _run(run_dir: Path, args: argparse.Namespace) -> int:
    if args.fresh and run_dir.exists():
        _clear(run_dir)
    supervise.raise_on_terminate()
    try:
        try:
            _start(run_dir, args)
        except slow_start.SlowStart as slow:
            print(f"the machine was too busy to start in time ({slow.error}); trying once more", flush=True)
            _start(run_dir, args)
    except KeyboardInterrupt:
        print(f"\nstopped; the same command resumes from the last checkpoint in {run_dir}", flush=True)
        return 130
    return 0


def _start(run_dir: Path, args: argparse.Namespace) -> None:
    """One start of verl's trainer, to its end."""
    logs = run_dir / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    started = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    metrics, console = logs / f"metrics-{started}.jsonl", logs / f"console-{started}.log"
    gitstate.save(run_dir, started)
    hydra_dir = run_dir / "hydra" / started
    server = fork_server.for_run(args.overrides, os.environ)
    command = [sys.executable, "-u", "-m", "verl.trainer.main_ppo", *args.overrides]
    command += [f"trainer.default_local_dir={run_dir / 'checkpoints'}", f"hydra.run.dir={hydra_dir}"]
    progress = _Progress(metrics, console, hydra_dir / ".hydra" / "config.yaml", run_dir / "config.yaml")
    environment = {"VERL_FILE_LOGGER_PATH": str(metrics), "HYDRA_FULL_ERROR": "0"}
    environment |= exposure.loopback(args.overrides, os.environ)

    def prepare() -> None:
        if not any(override.startswith("trainer.resume_mode=") for override in args.overrides):
            _choose_checkpoint(run_dir / "checkpoints", logs, started)
        if server is not None:
            with console.open("ab") as output:
                server.start({**os.environ, **environment, supervise.MARKER: str(run_dir)}, output)

    try:
        watched = {"on_tick": progress.tick, "stall_timeout": args.stall_timeout, "ended": lambda: progress.ended}
        with server or contextlib.nullcontext():
            environment |= {} if server is None else server.variables
            supervise.run(command, run_dir, console, environment, before=prepare, **watched)
    except supervise.RunFailed as failed:
        deadline = None if progress.logged else slow_start.missed_deadline(console)
        if deadline is None:
            raise
        raise slow_start.SlowStart(failed, deadline) from failed


def _clear(run_dir: Path) -> None:
    """Delete a run, unless it is going on or is no run."""
    if any(run_dir.iterdir()) and not (run_dir / "logs").is_dir():
        raise SystemExit(f"cppo-verl run: --fresh would delete {run_dir}, which is no run directory (it has no logs/)")
    with supervise.lock(run_dir):
        supervise.end_processes(run_dir)
        shutil.rmtree(run_dir)


def _choose_checkpoint(folder: Path, logs: Path, started: str) -> None:
    """Have verl's ``resume_mode=auto`` find a whole checkpoint, and no gap in the log behind it."""
    step, notes = checkpoints.settle(folder)
    for note in notes:
        print(f"checkpoints: {note}", flush=True)
    if step is not None and checkpoints.recover_record(folder, step, logs, started):
        print(f"checkpoints: step {step} was not logged before the run died; its metrics are taken from it", flush=True)


class _Tail:
    """The lines that were added to a growing file since the last look."""

    def __init__(self, path: Path):
        self.path, self.offset = path, 0

    def lines(self) -> Iterator[bytes]:
        if not self.path.exists():
            return
        with self.path.open("rb") as log:
            log.seek(self.offset)
            for line in log:
                if not line.endswith(b"\n"):
                    break
                self.offset += len(line)
                yield line


class _Progress:
    """Prints a line a step from verl's file logger and every alarm of the console, and keeps the resolved config."""

    def __init__(self, metrics: Path, console: Path, hydra_config: Path, config: Path):
        self.metrics, self.console = _Tail(metrics), _Tail(console)
        self.hydra_config, self.config = hydra_config, config
        self.began = time.monotonic()
        self.first_step: tuple[int, float] | None = None
        self.total: int | None = None
        self.saved = False
        self.logged = False  # any step, or the validation before the first
        self.ended = False  # the last step is logged

    def tick(self) -> None:
        """Called about once a second."""
        if not self.saved and self.hydra_config.with_name("overrides.yaml").exists():  # which Hydra writes last
            self._save_config()
        for line in self.console.lines():
            if ALARM in line:
                print(line[line.index(ALARM) :].decode("utf-8", "replace").rstrip(), flush=True)
        for line in self.metrics.lines():
            self._show(json.loads(line))
            self.logged = True

    def _save_config(self) -> None:
        config = OmegaConf.load(self.hydra_config)
        OmegaConf.resolve(config)
        atomic.write(self.config, OmegaConf.to_yaml(config))
        self.total = OmegaConf.select(config, "trainer.total_training_steps")
        self.saved = True
        print(f"[{time.monotonic() - self.began:5.0f} s] config accepted; starting Ray, the model and vLLM", flush=True)

    def _show(self, record: dict) -> None:
        step, data = record["step"], record["data"]
        self.ended = self.total is not None and step >= self.total
        parts = [f"step {step}" + (f"/{self.total}" if self.total else "")]
        if REWARD in data:
            parts.append(f"reward {data[REWARD]:+.3f}")
        parts += [f"{source} {100 * value:.1f}%" for source, value in _validation(data)]
        if MASKED in data:
            parts.append(f"masked {100 * data[MASKED]:.2f}%")
        now = time.monotonic()
        if "timing_s/step" in data:
            if self.first_step is None:
                self.first_step = (step, now)
            elif self.total and step > self.first_step[0]:
                pace = (now - self.first_step[1]) / (step - self.first_step[0])
                parts.append(f"{pace:.1f} s a step, {_clock(pace * (self.total - step))} to go")
        print(f"[{now - self.began:5.0f} s] " + "  ".join(parts), flush=True)


def _validation(data: dict) -> list[tuple[str, float]]:
    """Mean accuracy of each validation source."""
    found = [(re.fullmatch(r"val-core/(.+)/acc/mean@\d+", key), value) for key, value in data.items()]
    return [(match[1], value) for match, value in found if match]


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
