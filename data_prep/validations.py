"""What a run's validations say: accuracy with standard errors, beside what costs nothing, and texts to read.

`python -m data_prep.validations RUN --data DIR [--warm-start MODEL_DIR]` reads every response of every validation
(trainer.validation_data_dir=RUN/validations), prints a table and writes RUN/validations.md with it and with responses
to the same questions before and after. Samples of one question are not independent, so standard errors are over
questions; the gain is paired, question by question.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from cppo_verl import atomic, estimates, jsonlines
from data_prep import commands, storage

FOLDER, PAGE = "validations", "validations.md"
TEXTS = 10

Answers = Mapping[str, Sequence[Mapping[str, Any]]]  # question -> its responses, as verl wrote them


class ValidationError(ValueError):
    """There is nothing to read, or not what was expected."""


def read(run: Path) -> Mapping[int, Answers]:
    """Step -> question -> responses, of all validations of a run; a torn last line is left out, and said."""
    found: dict[int, dict[str, list[dict[str, Any]]]] = {}
    for file in sorted((run / FOLDER).glob("*.jsonl"), key=lambda path: int(path.stem)):
        answers = found.setdefault(int(file.stem), {})
        entries, torn = jsonlines.read(file)
        if torn:
            commands.say(torn)
        for entry in entries:
            answers.setdefault(entry["input"], []).append(entry)
    if not found:
        raise ValidationError(
            f"{run / FOLDER} has no validations: has the run got as far, with quickstart.sh or real_model.sh?"
        )
    return found


def accuracies(answers: Answers) -> dict[str, float]:
    """Question -> share of its responses that are right."""
    return {question: fmean([float(entry["acc"]) for entry in given]) for question, given in answers.items()}


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error; the error is 0 for a single value."""
    return fmean(values), estimates.standard_error(values) or 0.0


def gain(before: Answers, after: Answers) -> tuple[float, float]:
    """What accuracy rose by, and its standard error, over the questions that both have."""
    one, other = accuracies(before), accuracies(after)
    differences = [other[question] - one[question] for question in one if question in other]
    if not differences:
        raise ValidationError("the first and the last validation have no question in common: was the data changed?")
    return mean_and_error(differences)


def page(run: Path, data: Path, warm_start: Path | None = None) -> str:
    """The table and the texts, as Markdown; a ValidationError where there is nothing to compare."""
    found, baseline = read(run), (storage.read_manifest(data) or {}).get("commonest_answer_accuracy")
    if baseline is None:
        raise ValidationError(f"{data} has no manifest with a baseline: make it with data_prep.reasoning_gym_data")
    table = ["| | accuracy | standard error | partial marks |", "|---|---|---|---|"]
    table.append(f"| always the commonest training answer | {baseline:.3f} | | |")
    made = storage.read_manifest(warm_start) if warm_start else None
    if made is not None and "accuracy" in made:
        text = f"{made['accuracy']:.3f} | {made['standard_error']:.3f}"
        table.append(f"| warm start, its own held-out questions (pass@8 {made['pass@8']:.3f}) | {text} | |")
    for step, answers in found.items():
        mean, error = mean_and_error(list(accuracies(answers).values()))
        partial = fmean([float(entry.get("partial", entry["acc"])) for given in answers.values() for entry in given])
        name = f"step {step}" if step else "before the first step"
        table.append(f"| {name} | {mean:.3f} | {error:.3f} | {partial:.3f} |")
    parts = [f"# Validation of {run.name}", "\n".join(table)]
    first, last = min(found), max(found)
    before, after = found[first], found[last]
    if last > first:
        rise, error = gain(before, after)
        sure = f", {rise / error:.1f} standard errors" if error else ""
        parts.append(
            f"From step {first} to step {last}: {rise:+.3f} with a standard error of {error:.3f} over "
            f"{len(before)} questions, paired{sure}."
        )
    shared = [question for question in before if question in after]
    chosen = shared[:: max(1, len(shared) // TEXTS)][:TEXTS]  # evenly spread over the file
    parts.append(f"## {len(chosen)} questions, their first response at step {first} and at step {last}")
    for question in chosen:
        parts.append(f"```text\n{question.strip()}\n```")
        for step, answers in ((first, before), (last, after)):
            entry = answers[question][0]
            mark = "right" if entry["acc"] else f"wrong, {entry['gts']} is right"
            parts.append(f"step {step}, {mark}:\n\n```text\n{entry['output'].strip()}\n```")
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
