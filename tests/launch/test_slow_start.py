"""A start-up that a busy machine made fail is tried once more; the launcher is real, the trainer a stand-in."""

import os
import subprocess
import sys

import pytest

from tests import ROOT

DEADLINE = "ray.exceptions.RpcError: RPC error: Deadline Exceeded rpc_code: 4"
TRAINER = """
import os, pathlib, sys
starts = pathlib.Path(os.environ["CPPO_VERL_RUN_DIR"], "starts")
starts.open("a").write("x")
number = starts.stat().st_size
{body}
"""


def launch(tmp_path, body: str) -> tuple[subprocess.CompletedProcess, int]:
    """``cppo-verl run`` with ``body`` for a trainer, which knows the ``number`` of its start; and the last number."""
    package = tmp_path / "path/verl/trainer"
    package.mkdir(parents=True)
    for folder in (package.parent, package):
        (folder / "__init__.py").touch()
    (package / "main_ppo.py").write_text(TRAINER.format(body=body))
    run = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, "-m", "cppo_verl.cli.main", "run", str(run), "some.key=1"],
        env={**os.environ, "PYTHONPATH": f"{tmp_path / 'path'}:{ROOT}", "VERL_PLATFORM": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done, (run / "starts").stat().st_size


def test_a_missed_deadline_is_tried_again(tmp_path):
    done, starts = launch(tmp_path, f"if number == 1: sys.exit({DEADLINE!r})\nprint('trained')")
    assert (done.returncode, starts) == (0, 2)
    assert f"the machine was too busy to start in time ({DEADLINE}); trying once more" in done.stdout
    consoles = sorted((tmp_path / "run/logs").glob("console-*.log"))
    assert ["trained" in console.read_text() for console in consoles] == [False, True]


def test_but_only_once(tmp_path):
    done, starts = launch(tmp_path, f"sys.exit({DEADLINE!r})")
    assert (done.returncode, starts) == (1, 2)
    assert "the trainer ended with exit status 1" in done.stderr and DEADLINE in done.stderr


@pytest.mark.parametrize(
    "body",
    [
        "sys.exit('RunConfigError: this trust-region run cannot start')",
        f"print({DEADLINE!r}); sys.exit('ValueError: no such model')",  # which Ray got over
        # after the first step it is no start-up
        "open(os.environ['VERL_FILE_LOGGER_PATH'], 'w').write('{\"step\": 1, \"data\": {}}\\n')\n"
        f"sys.exit({DEADLINE!r})",
    ],
    ids=["config", "another error later", "after a step"],
)
def test_nothing_else_is_tried_again(tmp_path, body):
    done, starts = launch(tmp_path, body)
    assert (done.returncode, starts) == (1, 1)
    assert "trying once more" not in done.stdout
