"""Files that appear whole or not at all."""

import os
import time

import pytest

from cppo_verl import atomic


def test_text_and_bytes_replace_the_file_and_make_its_folder(tmp_path):
    path = tmp_path / "new/file"
    atomic.write(path, "ä")
    assert path.read_bytes() == b"\xc3\xa4"
    atomic.write(path, b"\xff")
    assert path.read_bytes() == b"\xff" and os.listdir(path.parent) == ["file"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(OSError, match="disk full"), atomic.replacing(path) as beside:
        beside.write_text("half")
        assert path.read_text() == "old"
        raise OSError("disk full")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("name", ["file", "[1]", "a*", "a?"])
def test_a_full_disk_names_the_file(tmp_path, monkeypatch, name):
    monkeypatch.setattr("secrets.token_hex", lambda _: "full")
    (tmp_path / f".{name}.full.tmp").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device: '.*") as raised:
        atomic.write(tmp_path / name, "text")
    assert raised.value.filename == str(tmp_path / name)


def test_leftovers_of_killed_writers_go_once_they_are_old(tmp_path):
    old, new, other = (tmp_path / name for name in (".a[1].1.tmp", ".a[1].2.tmp", ".a1.1.tmp"))
    for leftover in (old, new, other):
        leftover.write_text("half")
    for leftover in (old, other):
        os.utime(leftover, (0, time.time() - atomic.LEFTOVER_SECONDS - 1))
    atomic.write(tmp_path / "a[1]", "whole")
    assert not old.exists() and new.exists() and other.exists()
