"""No validation problem in the training set.

`python -m data_prep.contamination --train TRAIN.parquet --val A.parquet B.parquet --out CLEAN.parquet` writes the
training rows whose problem is in no validation file, CLEAN.dropped.jsonl with the others, and CLEAN.manifest.json. Two
problems are the same if in normalised text they are equal or one, of MIN_CONTAINED characters or more, lies within the
other: DAPO adds a sentence where it changed an answer to a whole number.
"""

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from cppo_verl import atomic
from data_prep import commands, problems, storage
from data_prep.sources import DataError, LocalFile, read_records

MIN_CONTAINED = 60

DRAWING = re.compile(r"\[asy\].*?\[/asy\]", re.DOTALL)
LAYOUT = re.compile(
    r"\\(?:[,;:!>() \[\]]|(?:quad|qquad|left|right|big|bigl|bigr|displaystyle|textstyle|limits"
    r"|text|textbf|textit|mathrm|mathbf|mathit|operatorname)(?![a-z]))"
)
FRACTION = re.compile(r"\\[dt]frac(?![a-z])")
KEPT_SYMBOLS = frozenset("+-*/=<>^_|!\\")
DASHES = str.maketrans("–—−", "---")


def normalise(text: str) -> str:
    """Text that is equal for problems that differ in spelling only: letters, digits and operators, in lower case."""
    text = unicodedata.normalize("NFKC", text).casefold().translate(DASHES)
    text = FRACTION.sub(r"\\frac", LAYOUT.sub("", DRAWING.sub("", text)))
    return "".join(character for character in text if character.isalnum() or character in KEPT_SYMBOLS)


def find_matches(train: Sequence[str], validation: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    """Every training problem that is in a validation file (its name -> problems), with the first place found.

    Returns:
        for each its row (from 0) and problem, kind (equal or contained), validation_file and validation_row (from 0).
    """
    known = [(normalise(text), name, row) for name, texts in validation.items() for row, text in enumerate(texts)]
    exact = {key: (name, row) for key, name, row in reversed(known)}
    matches = []
    for row, text in enumerate(train):
        key = normalise(text)
        place = exact.get(key) or next((place for other, *place in known if _is_contained(key, other)), None)
        if place:
            kind = "equal" if key in exact else "contained"
            found = {"validation_file": place[0], "validation_row": place[1]}
            matches.append({"row": row, "problem": text, "kind": kind, **found})
    return matches


def read_prompts(path: Path) -> list[str]:
    """The problems of a parquet file in verl's columns, without instruction and reminder."""
    if path.suffix != ".parquet":
        raise DataError(f"{path}: not a parquet file")
    texts = []
    for record in read_records(LocalFile(path, {})):
        try:
            texts.append(problems.problem_of(problems.prompt_text(record.values.get("prompt"))))
        except ValueError as error:
            raise DataError(f"{path}: {record.place}: column prompt: {error}") from error
    return texts


def remove(train: Path, validation: Sequence[Path], out: Path) -> None:
    """Write ``out``, its list of dropped rows and its manifest, unless they are there already, and say so."""
    manifest_name, dropped = f"{out.stem}.manifest.json", out.with_name(f"{out.stem}.dropped.jsonl")
    arguments = {
        "train": {"file": train.name, "sha256": storage.sha256_of(train)},
        "validation": [{"file": path.name, "sha256": storage.sha256_of(path)} for path in validation],
        "min_contained": MIN_CONTAINED,
        "rule": [DRAWING.pattern, LAYOUT.pattern, FRACTION.pattern, "".join(sorted(KEPT_SYMBOLS))],
    }
    if storage.is_current(out.parent, arguments, manifest_name):
        commands.report(out, False)
        return
    matches = find_matches(read_prompts(train), {path.name: read_prompts(path) for path in validation})
    table, rows = pyarrow.parquet.read_table(train), {match["row"] for match in matches}
    kept = table.filter(pyarrow.array([row not in rows for row in range(table.num_rows)], pyarrow.bool_()))
    with atomic.replacing(out) as temporary:
        pyarrow.parquet.write_table(kept, temporary)
    atomic.write(dropped, "".join(json.dumps(match, ensure_ascii=False) + "\n" for match in matches))
    sizes = {out: kept.num_rows, dropped: len(matches)}
    storage.write_manifest(out.parent, {"arguments": arguments}, sizes, manifest_name)
    found = f"{len(matches)} left out for being validation problems (listed in {dropped.name})"
    commands.say(f"{out}: {kept.num_rows} rows; {found}")


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = commands.parser_of("contamination", __doc__)
    parser.add_argument("--train", type=Path, required=True, help="training file in verl's columns")
    parser.add_argument("--val", type=Path, nargs="+", required=True, help="validation files in verl's columns")
    parser.add_argument("--out", type=Path, required=True, help="the training file to write")
    options = parser.parse_args(argv)
    if options.out.resolve() in {path.resolve() for path in [options.train, *options.val]}:
        parser.error(f"--out {options.out} is one of the inputs: give another name")
    commands.run(lambda: remove(options.train, options.val, options.out))


def _is_contained(one: str, other: str) -> bool:
    shorter, longer = sorted((one, other), key=len)
    return len(shorter) >= MIN_CONTAINED and shorter in longer


if __name__ == "__main__":
    main()
