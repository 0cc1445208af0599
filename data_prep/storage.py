"""Data files and model folders that appear whole or not at all, and the manifest that says what they are.

A manifest is a JSON file in the output folder (`manifest.json`, or a name of its own where several commands share a
folder): the arguments, and for each file its sha256. Where arguments and files match it, there is nothing to do.
"""

import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas

from cppo_verl import atomic
from data_prep import commands

MANIFEST = "manifest.json"


def sha256_of(path: Path) -> str:
    """Hexadecimal sha256 of the file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verl_row(
    data_source: str, prompt: Sequence[Mapping[str, str]], ability: str, truth: str, **extra_info: Any
) -> dict[str, Any]:
    """A row in the columns that verl reads; a scorer gets ``truth`` and ``extra_info``."""
    reward_model = {"style": "rule", "ground_truth": truth}
    found = {"data_source": data_source, "prompt": prompt, "ability": ability, "reward_model": reward_model}
    return found | {"extra_info": extra_info}


def write_splits(
    folder: Path, splits: Mapping[str, list[dict[str, Any]]], content: Mapping[str, Any], name: str = MANIFEST
) -> None:
    """``folder``/SPLIT.parquet for each split that has rows, which may be nested; then the manifest, with the files."""
    sizes = {folder / f"{split}.parquet": len(rows) for split, rows in splits.items() if rows}
    for path in sizes:
        with atomic.replacing(path) as temporary:
            pandas.DataFrame(splits[path.stem]).to_parquet(temporary, index=False)
    write_manifest(folder, content, sizes, name)


def write_manifest(
    folder: Path, content: Mapping[str, Any], sizes: Mapping[Path, int] | None = None, name: str = MANIFEST
) -> None:
    """Write ``content`` as ``folder``/``name``, with rows and sha256 of the files of ``sizes``, which are there."""
    files = {path.name: {"rows": rows, "sha256": sha256_of(path)} for path, rows in (sizes or {}).items()}
    text = json.dumps({**content, **({"files": files} if files else {})}, indent=2, sort_keys=True)
    atomic.write(folder / name, text + "\n")


def read_manifest(folder: Path, name: str = MANIFEST) -> dict[str, Any]:
    """The manifest of ``folder``, empty where there is none or it is no JSON object (a foreign or broken output)."""
    try:
        found = json.loads((folder / name).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def is_current(folder: Path, arguments: Mapping[str, Any], name: str = MANIFEST) -> bool:
    """Whether ``folder`` holds exactly what ``arguments`` would make: same arguments, every listed file unchanged."""
    manifest = read_manifest(folder, name)
    files = manifest.get("files", {})
    return bool(files and manifest.get("arguments") == dict(arguments)) and all(
        (folder / file).is_file() and sha256_of(folder / file) == entry["sha256"] for file, entry in files.items()
    )


def make_model(
    out: Path, kind: str, arguments: Mapping[str, Any], work: Callable[[], tuple[Any, Any, dict[str, Any]]]
) -> bool:
    """Put what ``work`` returns (model, tokenizer, numbers for the manifest) into ``out``, whole, with a manifest.

    False where ``out`` holds what ``arguments`` make; a FileExistsError where it holds something of another ``kind``.
    """
    if is_current(out, arguments):
        return False
    if out.exists() and any(out.iterdir()) and read_manifest(out).get("kind") != kind:
        raise FileExistsError(f"out = {out} holds files that are not of this command: name another folder or empty it")
    started = time.monotonic()
    model, tokenizer, numbers = work()
    numbers |= {"parameters": model.num_parameters(), "seconds": round(time.monotonic() - started, 1)}
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as temporary:
        fresh = Path(temporary) / "fresh"
        model.save_pretrained(fresh)
        tokenizer.save_pretrained(fresh)
        files = {path.name: {"sha256": sha256_of(path)} for path in sorted(fresh.iterdir())}
        write_manifest(fresh, {"kind": kind, "arguments": arguments, **numbers, "files": files})
        if out.exists():
            out.rename(Path(temporary) / "replaced")
        fresh.rename(out)
    commands.say(f"{out}: " + ", ".join(f"{name} {round(value, 3):,}" for name, value in numbers.items()))
    return True
