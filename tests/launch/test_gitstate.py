"""The state of the code beside a run, in real git repositories."""

import json
import subprocess

import pytest

from cppo_verl import __version__
from cppo_verl.launch import gitstate


@pytest.fixture
def checkout(tmp_path):
    root = tmp_path / "checkout"
    root.mkdir()

    def git(*arguments):
        identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
        done = subprocess.run(["git", "-C", root, *identity, *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    git("init", "--initial-branch=trunk")
    (root / "a.py").write_text("1\n")
    git("add", ".")
    git("commit", "-m", "first")
    return root, git


def test_a_clean_and_a_changed_checkout(checkout):
    root, git = checkout
    clean = gitstate.state(root)
    assert (clean["commit"], clean["branch"], clean["dirty"]) == (git("rev-parse", "HEAD"), "trunk", [])
    (root / "a.py").write_text("2\n")
    (root / "new file.py").write_text("")
    assert gitstate.state(root)["dirty"] == ["a.py", '"new file.py"']


def test_outside_a_checkout(tmp_path, checkout):
    assert gitstate.state(tmp_path)["commit"] is None
    inside = checkout[0] / "site-packages"  # installed into a folder of another repository
    inside.mkdir()
    assert gitstate.state(inside)["commit"] is None


def test_every_start_is_kept(tmp_path, checkout):
    run = tmp_path / "run"
    run.mkdir()
    gitstate.save(run, "20260101T000000Z", checkout[0])
    (checkout[0] / "a.py").write_text("3\n")
    path = gitstate.save(run, "20260102T000000Z", checkout[0])
    first, second = json.loads(path.read_text())
    assert (first["started"], first["dirty"]) == ("20260101T000000Z", [])
    assert (second["started"], second["dirty"]) == ("20260102T000000Z", ["a.py"])
    assert second["versions"]["cppo_verl"] == __version__
    assert "verl" in second["versions"]
    assert [file.name for file in run.iterdir()] == [gitstate.NAME]
