"""The state of the code beside a run, in a real git repository."""

import json
import subprocess

import pytest

from cppo_verl import __version__
from cppo_verl.errors import UserError
from cppo_verl.launch import gitstate


def test_every_start_is_kept_with_the_state_of_its_checkout(tmp_path):
    root, run = tmp_path / "checkout", tmp_path / "run"
    inside = root / "site-packages"  # installed into a folder of another repository
    for folder in (root, run, inside):
        folder.mkdir()

    def git(*arguments):
        identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
        done = subprocess.run(["git", "-C", root, *identity, *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    git("init")
    (root / "a.py").write_text("1\n")
    git("add", ".")
    git("commit", "-m", "first")
    gitstate.save(run, "20260101T000000Z", root)
    (root / "a.py").write_text("2\n")
    (root / "new file.py").write_text("")
    first, second = json.loads(gitstate.save(run, "20260102T000000Z", root).read_text())
    assert first["started"] == "20260101T000000Z"
    assert (first["commit"], first["dirty"]) == (git("rev-parse", "HEAD"), [])
    assert (second["started"], second["dirty"]) == ("20260102T000000Z", ["a.py", '"new file.py"'])
    assert second["versions"]["cppo_verl"] == __version__ and "verl" in second["versions"]
    assert [file.name for file in run.iterdir()] == [gitstate.NAME]
    for outside in (tmp_path, inside):
        assert gitstate.state(outside)["commit"] is None


@pytest.mark.parametrize("text", ["{", "{}"])
def test_what_is_no_list_of_starts_is_named(tmp_path, text):
    (tmp_path / gitstate.NAME).write_text(text)
    with pytest.raises(UserError, match=r"git.json is no list of starts"):
        gitstate.save(tmp_path, "now")
