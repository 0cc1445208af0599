"""What a run's validations say: accuracy with standard errors, beside what costs nothing, and texts to read.

`python -m data_prep.validations RUN --data DIR [--warm-start MODEL_DIR]` reads every response of every validation
(trainer.validation_data_dir=RUN/validations), prints a table and writes RUN/validations.md with it and with responses
to the same questions before and after. Samples of one question are not independent, so standard errors are over
questions; the gain is paired, question by question.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from pandas import DataFrame, Series

from cppo_verl import atomic, jsonlines
from data_prep import commands, storage

FOLDER, PAGE = "validations", "validations.md"
TEXTS = 10


def read(run: Path) -> dict[int, DataFrame]:
    """Step -> responses as verl wrote them, a row each, of all validations; a torn last line is left out, and said."""
    found = {}
    for file in sorted((run / FOLDER).glob("*.jsonl"), key=lambda path: int(path.stem)):
        entries, torn = jsonlines.read(file)
        if torn:
            commands.say(torn)
        if entries:
            found[int(file.stem)] = DataFrame(entries)
    if not found:
        raise ValueError(
            f"{run / FOLDER} has no validations: has the run got as far, with quickstart.sh or real_model.sh?"
        )
    return found


def accuracies(responses: DataFrame) -> Series:
    """Question -> share of its responses that are right."""
    return responses.groupby("input", sort=False)["acc"].mean()


def gain(before: DataFrame, after: DataFrame) -> tuple[float, float]:
    """What accuracy rose by, and its standard error, over the questions that both have."""
    differences = (accuracies(after) - accuracies(before)).dropna()
    if differences.empty:
        raise ValueError("the first and the last validation have no question in common: was the data changed?")
    return differences.mean(), differences.sem()


def fenced(text: str) -> str:
    """``text`` as a block of code that nothing in it ends."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}text\n{text.strip()}\n{fence}"


def page(run: Path, data: Path, warm_start: Path | None = None) -> str:
    """The table and the texts, as Markdown; a ValueError where there is nothing to compare."""
    found, baseline = read(run), storage.read_manifest(data).get("commonest_answer_accuracy")
    if baseline is None:
        raise ValueError(f"{data} has no manifest with a baseline: make it with data_prep.reasoning_gym_data")
    table = ["| | accuracy | standard error | partial marks |", "|---|---|---|---|"]
    table.append(f"| always the commonest training answer | {baseline:.3f} | | |")
    made = storage.read_manifest(warm_start) if warm_start else {}
    if "accuracy" in made:
        text = f"{made['accuracy']:.3f} | {made['standard_error']:.3f}"
        table.append(f"| warm start, its own held-out questions (pass@8 {made['pass@8']:.3f}) | {text} | |")
    for step, responses in found.items():
        right, partial = accuracies(responses), responses.get("partial", responses["acc"]).mean()
        name = f"step {step}" if step else "before the first step"
        table.append(f"| {name} | {right.mean():.3f} | {right.sem():.3f} | {partial:.3f} |")
    parts = [f"# Validation of {run.name}", "\n".join(table)]
    first, last = min(found), max(found)
    firsts, lasts = (found[step].drop_duplicates("input").set_index("input") for step in (first, last))
    if last > first:
        rise, error = gain(found[first], found[last])
        sure = f", {rise / error:.1f} standard errors" if error else ""
        parts.append(
            f"From step {first} to step {last}: {rise:+.3f} with a standard error of {error:.3f} over "
            f"{len(firsts)} questions, paired{sure}."
        )
    shared = [question for question in firsts.index if question in lasts.index]
    chosen = shared[:: max(1, len(shared) // TEXTS)][:TEXTS]  # evenly spread over the file
    parts.append(f"## {len(chosen)} questions, their first response at step {first} and at step {last}")
    for question in chosen:
        parts.append(fenced(question))
        for step, responses in ((first, firsts), (last, lasts)):
            entry = responses.loc[question]
            mark = "right" if entry["acc"] else f"wrong, {entry['gts']} is right"
            parts.append(f"step {step}, {mark}:\n\n{fenced(entry['output'])}")
    return "\n\n".join(parts) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = commands.parser_of("validations", __doc__)
    parser.add_argument("run", type=Path, help="run directory")
    parser.add_argument("--data", type=Path, required=True, help="folder that data_prep.reasoning_gym_data wrote")
    parser.add_argument("--warm-start", type=Path, help="folder that data_prep.warm_start wrote")
    options = parser.parse_args(argv)

    def work() -> None:
        text = page(options.run, options.data, options.warm_start)
        atomic.write(options.run / PAGE, text)
        commands.say(text.partition("\n## ")[0])
        commands.say(f"texts: {options.run / PAGE}")

    commands.run(work)


if __name__ == "__main__":
    main()
