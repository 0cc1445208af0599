"""Made-up maths data in the shapes of the hub's copies."""

import json
from pathlib import Path
from typing import Any

import pandas
import pyarrow
import pyarrow.parquet


def wrapped(problem: str) -> str:
    """A prompt with an instruction before and a reminder after the problem, as DAPO's rows have."""
    return f'Solve it. The last line is of the form Answer: $Answer.\n\n{problem}\n\nPut the result after "Answer:".'


def verl_row(prompt: str, answer: str, index: str) -> dict[str, Any]:
    return {
        "data_source": "math_dapo",
        "prompt": [{"content": prompt, "role": "user"}],
        "ability": "MATH",
        "reward_model": {"ground_truth": answer, "style": "rule-lighteval/MATH_v2"},
        "extra_info": {"index": index},
    }


def dapo_rows(problems: int, copies: int) -> list[dict[str, Any]]:
    """``copies`` passes over ``problems`` rows; every tenth has the prompt of the row before and its own index."""
    numbers = [i - (i % 10 == 9) for i in range(problems)]
    texts = [wrapped(f"Find $x$ if $x + {number} = 2 \\cdot {number}$.") for number in numbers]
    return [verl_row(texts[i], str(numbers[i]), f"id-{i}") for i in range(problems)] * copies


def aime_rows(year: int = 2024, count: int = 30) -> list[dict[str, Any]]:
    """Flat rows: problem_idx, problem, answer."""
    return [
        {"problem_idx": i, "problem": f"Let $n = {i}$ in the contest of {year}. Find $n + {year}$.", "answer": i + 11}
        for i in range(count)
    ]


def write(rows: list[dict[str, Any]], path: Path, **options: Any) -> Path:
    """The rows as parquet, jsonl or csv, by the path's ending."""
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, **options)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pandas.DataFrame(rows).to_csv(path, index=False)
    return path


def output_rows(path: Path) -> list[dict[str, Any]]:
    return pyarrow.parquet.read_table(path).to_pylist()
