"""Start verl's trainer with a run directory, progress and a watchdog.

Options and overrides come in any order. Of Hydra's own flags --config-name and --config-path are passed on; for
--config-dir=DIR write hydra.searchpath=[DIR]; a run directory holds one run, so there is no --multirun.
"""

import argparse
import contextlib
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from cppo_verl import presets
from cppo_verl.errors import UserError
from cppo_verl.integration.cpu import fork_server
from cppo_verl.launch import checkpoints, command_line, exposure, gitstate, paths, supervise
from cppo_verl.launch import overrides as hydra_overrides
from cppo_verl.launch.progress import Progress
from cppo_verl.launch.quoting import quote

SHARDS = {"model": "model", "optimizer": "optim", "extra": "extra_state"}  # contents of a checkpoint: their files


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("run_dir", type=Path, help="logs, checkpoints and the report go here; an existing run resumes")
    add("--fresh", action="store_true", help="delete what the run directory holds and start anew")
    add("--stall-timeout", type=float, default=1800.0, help="seconds without output = hung (%(default)s)")
    add("--check", action="store_true", help="compose and check the config, and start nothing")
    add("--glance", action="store_true", help="check only what the overrides show by themselves, in milliseconds")
    for name in ("name", "path"):
        add(f"--config-{name}", f"-c{name[0]}", metavar=name.upper(), help="Hydra's, passed on")
    add("overrides", nargs="*", help="Hydra overrides for verl.trainer.main_ppo")


def run(args: argparse.Namespace) -> int:
    """Start or resume the run; 0 when it reached its last step."""
    problems = command_line.problems(args.overrides)
    for problem in problems:
        print(problem, file=sys.stderr, flush=True)
    if problems or args.glance:
        return 2 if problems else 0
    config = hydra_overrides.compose(args.overrides, args.config_name, args.config_path)
    for problem in paths.problems(config):
        raise UserError(problem)
    if args.check:
        print("\n".join(_checked(config, args.overrides)))
        return 0
    run_dir = args.run_dir.resolve()
    if args.fresh and run_dir.exists():
        _checked(config, args.overrides)
        _clear(run_dir)
    supervise.raise_on_terminate()
    _start(run_dir, args, config)
    return 0


def _checked(config: DictConfig, overrides: Sequence[str]) -> list[str]:
    """What the run's own start would say of the composed config. RunConfigError: it would refuse."""
    from cppo_verl.integration import checks, hydra_check, start_table

    if not checks.is_asked_for(config):
        return [f"no preset is chosen (+{presets.GROUP}=): verl's own run, of which nothing is checked here"]
    search_path = hydra_overrides.parse(overrides).get(command_line.SEARCH_PATH) or ()
    hydra_check.find_rule(config, presets.folders_of(search_path))
    checks.require(config, overrides=overrides)
    return start_table.lines(config, overrides)


def _clear(run_dir: Path) -> None:
    """Delete a run, unless it is going on or is no run."""
    if any(run_dir.iterdir()) and not (run_dir / "logs").is_dir():
        raise UserError(f"--fresh would delete {run_dir}, which is no run directory (it has no logs/)")
    with supervise.lock(run_dir):
        supervise.end_processes(run_dir)
        shutil.rmtree(run_dir)


def _start(run_dir: Path, args: argparse.Namespace, config: DictConfig) -> None:
    """One start of verl's trainer, to its end."""
    started = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    logs, hydra_dir, saved = run_dir / "logs", run_dir / "hydra" / started, run_dir / "checkpoints"
    logs.mkdir(parents=True, exist_ok=True)
    metrics, console = logs / f"metrics-{started}.jsonl", logs / f"console-{started}.log"
    gitstate.save(run_dir, started)
    environment = {"VERL_FILE_LOGGER_PATH": str(metrics), "HYDRA_FULL_ERROR": "0"}
    if os.path.expanduser("~") == "~":  # Ray and others keep files there
        environment["HOME"] = str(run_dir / "home")
        (run_dir / "home").mkdir(exist_ok=True)
        _note(f"this user has no home folder; for this run it is {run_dir / 'home'}")
    server = None
    if _is_alone(config):
        environment |= exposure.loopback(os.environ)
        server = fork_server.for_run(os.environ)
    flags = {"--config-name": args.config_name, "--config-path": args.config_path}
    command = [sys.executable, "-u", "-m", "verl.trainer.main_ppo"]
    command += [f"{flag}={value}" for flag, value in flags.items() if value]
    command += [*args.overrides, *_own_overrides(run_dir, hydra_dir, args.overrides, config)]
    progress = Progress(metrics, console, hydra_dir / ".hydra/config.yaml", run_dir / "config.yaml")

    def prepare() -> None:
        _choose_checkpoint(saved, logs, started, config)
        if server is not None:
            with console.open("ab") as output:
                server.start({**os.environ, **environment, supervise.MARKER: str(run_dir)}, output)

    watched = {"on_tick": progress.tick, "stall_timeout": args.stall_timeout, "ended": lambda: progress.ended}
    with server or contextlib.nullcontext():
        environment |= {} if server is None else server.variables
        supervise.run(command, run_dir, console, environment, before=prepare, **watched)
    reached = max(progress.step, checkpoints.pointed_at(saved) or 0)
    if progress.total and reached < progress.total and not config.trainer.val_only:
        said = f"the trainer ended at step {reached} of trainer.total_training_steps={progress.total}, without an error"
        why = f"its trainer.total_epochs={config.trainer.total_epochs} were over"
        raise UserError(f"{said}: {why}. Raise them (1000: the steps decide), and the same command goes on.")


def _own_overrides(run_dir: Path, hydra_dir: Path, overrides: Sequence[str], config: DictConfig) -> list[str]:
    """What the launcher adds to the user's overrides; whatever of theirs it takes over is said."""
    given = hydra_overrides.parse(overrides)
    added = []
    for key, folder in (("trainer.default_local_dir", run_dir / "checkpoints"), ("hydra.run.dir", hydra_dir)):
        if key in given:
            _note(f"{key}={given[key]} is not used: that lies in {folder}")
        added.append(f"{key}={quote(folder)}")
    loggers = list(OmegaConf.select(config, "trainer.logger") or [])
    if "file" not in loggers:
        _note(f"trainer.logger={loggers}: file is added, which progress and report are read from")
        added.append(f"trainer.logger=[{','.join([*loggers, 'file'])}]")
    for override, reason in paths.read_literally(config):
        _note(f"{reason}; taken literally by {override}")
        added.append(override)
    return added


def _is_alone(config: DictConfig) -> bool:
    """Whether the run has a Ray of its own on this machine; says what is not watched where it has not."""
    ray_init = OmegaConf.select(config, "ray_kwargs.ray_init") or {}
    address, nodes = exposure.cluster(ray_init, os.environ), config.trainer.nnodes
    if address is None and nodes == 1:
        return True
    if address is None:
        remedy = "start it on every node (run_scripts/start_ray.sh) and set RAY_ADDRESS, or set trainer.nnodes=1"
        raise UserError(f"trainer.nnodes={nodes}, and no Ray cluster is here: {remedy}.")
    exposure.require_answer(address)
    shows = "a worker that dies there shows when verl says so, or after --stall-timeout seconds without output"
    _note(f"the run joins the Ray cluster at {address}: its workers are not watched from here; {shows}")
    return False


def _choose_checkpoint(folder: Path, logs: Path, started: str, config: DictConfig) -> None:
    """Have verl's ``resume_mode=auto`` find a whole checkpoint, and no gap in the log behind it."""
    trainer = config.trainer
    contents = OmegaConf.select(config, "actor_rollout_ref.actor.checkpoint.load_contents") or SHARDS
    ranks, kinds = trainer.nnodes * trainer.n_gpus_per_node, tuple(SHARDS[name] for name in contents if name in SHARDS)
    if trainer.resume_mode == "resume_path":
        checkpoints.require(str(trainer.resume_from_path), ranks, kinds)
    if trainer.resume_mode != "auto":
        return
    step, notes = checkpoints.settle(folder, ranks, kinds)
    found, kept = len(checkpoints.steps(folder)), trainer.max_actor_ckpt_to_keep
    if kept and found > kept:
        notes.append(f"{found} lie there; verl deletes only what the same start wrote, so delete old ones by hand")
    if step is not None and checkpoints.recover_record(folder, step, logs, started):
        notes.append(f"step {step} was not logged before the run died; its metrics are taken from it")
    for note in notes:
        print(f"checkpoints: {note}", flush=True)


def _note(text: str) -> None:
    print(f"note: {text}", flush=True)
