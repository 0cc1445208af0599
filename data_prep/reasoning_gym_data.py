"""Tasks of the package reasoning-gym as verl's parquet: a hundred generators of questions with scorers of their own.

`python -m data_prep.reasoning_gym_data --out DIR --tasks 'chain_sum(max_terms=3), gcd'` writes train.parquet,
val.parquet, warm.parquet (for data_prep/warm_start.py) and manifest.json; `--tasks list` names all tasks. A task is its
name, and in brackets those options of its reasoning-gym config that differ from the default. No question occurs twice.
"""

import ast
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from itertools import zip_longest
from pathlib import Path
from typing import Any

from data_prep import commands, reasoning_gym_reward, storage
from data_prep.reasoning_gym_reward import FULL

SPLITS = ("val", "train", "warm")
DISTANCE = 10**7  # seeds between two splits; item i is drawn from seed + i, and no split draws as many items
MOST_DRAWS = 50  # a row, before a task counts as exhausted
COMPOSITE = "composite"  # a mixture of other data sets, which our list of tasks is already


@dataclass(frozen=True)
class Arguments:
    """What decides the data, all of it. ``train``, ``val`` and ``warm`` are rows over all tasks together."""

    tasks: str = ""
    train: int = 2048
    val: int = 256
    warm: int = 0
    seed: int = 0
    prompt: str = "default"


def parse_tasks(text: str) -> dict[str, dict[str, Any]]:
    """`chain_sum(max_terms=3), gcd` as options by task; values are Python literals, and each task is named once."""
    tasks: dict[str, dict[str, Any]] = {}
    try:
        tree = ast.parse(f"[{text}]", mode="eval").body
        for node in tree.elts if isinstance(tree, ast.List) else ():
            call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
            if not isinstance(call.func, ast.Name) or call.args or any(word.arg is None for word in call.keywords):
                raise ValueError(f"{ast.unparse(node)} is neither a name nor NAME(option=value)")
            if call.func.id in tasks:
                raise ValueError(f"name each task once, and {call.func.id} is there twice")
            tasks[call.func.id] = {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
        if not tasks:
            raise ValueError("name one task or more")
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"tasks = {text!r} is no list like 'chain_sum(max_terms=3), gcd': {error}") from None
    return tasks


def names() -> list[str]:
    """All tasks, sorted."""
    from reasoning_gym.factory import DATASETS

    return sorted(set(DATASETS) - {COMPOSITE})


def open_task(task: str, options: Mapping[str, Any], seed: int, size: int) -> Any:
    """reasoning-gym's data set of ``size`` items from ``seed`` on; a ValueError for what it has not or refuses."""
    import reasoning_gym

    try:
        return reasoning_gym.create_dataset(task, seed=seed, size=size, **options)
    except (AssertionError, ValueError, TypeError) as error:
        raise ValueError(f"reasoning-gym refuses {task} with {dict(options)} (--tasks list): {error}") from error


def draw(task: str, options: Mapping[str, Any], seed: int, rows: int, seen: set[str]) -> list[dict[str, Any]]:
    """``rows`` items with questions that are not in ``seen``, to which they are added.

    Raises:
        ValueError: the task has not so many questions, or its scorer denies its own answer full marks.
    """
    limit = min(MOST_DRAWS * rows, DISTANCE)
    items: list[dict[str, Any]] = []
    data = open_task(task, options, seed, max(1, limit))
    for index in range(limit):
        if len(items) == rows:
            break
        if (item := data[index])["question"] not in seen:
            seen.add(item["question"])
            items.append(item)
    if len(items) < rows:
        raise ValueError(
            f"{task} gave {len(items)} new questions in {limit} draws, of {rows} wanted: ask for fewer rows, "
            "or widen its options"
        )
    answered = [(str(item["answer"]), as_json(item)) for item in items if item["answer"] is not None]
    for (answer, _), given in zip(answered, reasoning_gym_reward.marks(answered), strict=True):
        if given != FULL:
            raise ValueError(
                f"{task}: reasoning-gym's scorer gives its own answer {answer[:60]!r} {given} of 1 marks, "
                "so that it cannot be a reward; choose another task or other options"
            )
    return items


def worked_solution(task: str, item: Mapping[str, Any]) -> str:
    """A solution in steps that ends with the answer, for tasks where the item says what there is to work out; else "".

    chain_sum: one line for each operation, computed from the line before, `98+93=191` then `191-77=114`.
    """
    if task != "chain_sum":
        return ""
    first, *rest = item["metadata"]["expression"].split()
    value, lines = int(first), []
    for sign, term in zip(rest[::2], rest[1::2], strict=True):
        after = value + int(term) if sign == "+" else value - int(term)
        lines.append(f"{value}{sign}{term}={after}")
        value = after
    if str(value) != str(item["answer"]):
        raise ValueError(f"{task}: {item['metadata']['expression']} is worked out as {value}, not {item['answer']}")
    return "\n".join(lines)


def as_json(item: Mapping[str, Any]) -> str:
    """Question, answer and metadata of an item."""
    return json.dumps({key: item[key] for key in ("question", "answer", "metadata")}, default=str)


def draw_split(split: str, arguments: Arguments, seen: set[str]) -> list[dict[str, Any]]:
    """A split's rows in verl's columns; ``extra_info.entry`` is the item as JSON, from which the scorer works.

    The tasks come by turns, so that any part of the file is a mixture; the first ones get what is left over.
    """
    from reasoning_gym.utils import SYSTEM_PROMPTS

    tasks, prompt = parse_tasks(arguments.tasks), arguments.prompt
    system = "" if prompt == "none" else SYSTEM_PROMPTS.get(prompt, prompt).strip()
    start = (len(SPLITS) * arguments.seed + SPLITS.index(split)) * DISTANCE
    each, rest = divmod(getattr(arguments, split), len(tasks))
    drawn = [draw(*task, start, each + (place < rest), seen) for place, task in enumerate(tasks.items())]
    turns = [(task, item) for turn in zip_longest(*drawn) for task, item in zip(tasks, turn, strict=True) if item]
    rows = []
    for index, (task, item) in enumerate(turns):
        answer = "" if item["answer"] is None else str(item["answer"])
        messages = [{"role": "system", "content": system}, {"role": "user", "content": item["question"].strip()}]
        own = {"index": index, "split": split, "task": task, "entry": as_json(item)}
        own["solution"] = worked_solution(task, item) or answer
        rows.append(storage.verl_row(f"rg_{task}", messages if system else messages[1:], "reasoning", answer, **own))
    return rows


def commonest_answers(splits: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """By data_source: the commonest training answer, its accuracy on the validation rows, and their number."""
    found = {}
    for source in sorted({row["data_source"] for row in splits["train"]}):
        train, val = ([row for row in splits[name] if row["data_source"] == source] for name in ("train", "val"))
        answer = Counter(row["reward_model"]["ground_truth"] for row in train).most_common(1)[0][0]
        right = reasoning_gym_reward.marks([(answer, row["extra_info"]["entry"]) for row in val]).count(FULL)
        found[source] = {"answer": answer, "accuracy": right / max(1, len(val)), "rows": len(val)}
    return found


def prepare(out: Path, arguments: Arguments) -> bool:
    """Write the splits and the manifest into ``out``; False where they are there already, unchanged."""
    made_by = asdict(arguments) | {"reasoning_gym": metadata.version("reasoning-gym")}
    if storage.is_current(out, made_by):
        return False
    seen = set[str]()
    splits = {split: draw_split(split, arguments, seen) for split in SPLITS}
    baseline = commonest_answers(splits)
    total = sum(entry["accuracy"] * entry["rows"] for entry in baseline.values()) / max(1, arguments.val)
    found = {"commonest_answer": baseline, "commonest_answer_accuracy": total}
    storage.write_splits(out, splits, {"arguments": made_by, **found})
    return True


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""

    def work(out: Path, arguments: Arguments) -> bool:
        if arguments.tasks == "list":
            commands.say("\n".join(names()))
            raise SystemExit
        return prepare(out, arguments)

    commands.prepare("reasoning_gym_data", __doc__, work, Arguments, ["out"], argv)


if __name__ == "__main__":
    main()
