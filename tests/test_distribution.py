"""What a user installs: the wheel, built from the source archive, has the whole package."""

import shutil
import subprocess
import sys
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

from tests import ROOT

PACKAGED = ("cppo_verl", "data_prep", "recipe", "hydra_plugins")
PIP = (sys.executable, "-m", "pip")


def run(*command: object, cwd: Path) -> str:
    done = subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def tracked() -> list[str]:
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT).splitlines()
    return [name for name in listed if (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """From a copy of the repository's files, by way of a source archive, as a release is made."""
    folder = tmp_path_factory.mktemp("release")
    source, dist = folder / "source", folder / "dist"
    for name in tracked():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    run(sys.executable, "-c", f"from setuptools import build_meta; build_meta.build_sdist({str(dist)!r})", cwd=source)
    (archive,) = dist.glob("*.tar.gz")
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", dist)
    run(*PIP, "wheel", *options, archive, cwd=folder)
    return next(dist.glob("*.whl"))


@pytest.mark.stack
def test_every_file_of_the_packages_is_in_it(wheel: Path):
    archive = zipfile.ZipFile(wheel)
    held, ours = set(archive.namelist()), {name for name in tracked() if name.split("/")[0] in PACKAGED}
    assert len(ours) > 100 and not ours - held
    about = {name.split("/", 1)[1]: name for name in held if ".dist-info/" in name}
    assert {name.split("/")[0] for name in held - set(about.values())} == set(PACKAGED)
    metadata = message_from_bytes(archive.read(about["METADATA"]))
    assert (metadata["Name"], metadata["License-Expression"] or metadata["License"]) == ("cppo_verl", "Apache-2.0")
    assert any(name.endswith("LICENSE") for name in about) and "# cppo_verl" in metadata.get_payload()
    assert any(requirement.startswith("verl") for requirement in metadata.get_all("Requires-Dist"))
