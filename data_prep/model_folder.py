"""Model folders of our own making: written whole or not at all, replaced only where they are ours."""

import tempfile
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from data_prep import storage


def save(out: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, manifest: dict[str, Any]) -> None:
    """Write model, tokenizer and manifest into a temporary folder beside ``out``, then rename it to ``out``.

    The manifest gets a sha256 of each file. An earlier call's folder is replaced; until the rename it stays as it was.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as temporary:
        fresh, replaced = Path(temporary) / "fresh", Path(temporary) / "replaced"
        model.save_pretrained(fresh)
        tokenizer.save_pretrained(fresh)
        files = {path.name: {"sha256": storage.sha256_of(path)} for path in sorted(fresh.iterdir())}
        storage.write_manifest(fresh, manifest | {"files": files})
        if out.exists():
            out.rename(replaced)
        fresh.rename(out)


def check_replaceable(out: Path, kind: str) -> None:
    """Raise a FileExistsError unless ``out`` is absent, empty, or a model folder whose manifest says ``kind``."""
    if out.exists() and any(out.iterdir()) and (storage.read_manifest(out) or {}).get("kind") != kind:
        raise FileExistsError(f"out = {out} holds files that are not of this command: name another folder or empty it")
