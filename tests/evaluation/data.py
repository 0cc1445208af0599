"""Rows, problems and responses for tests of the evaluation."""

from pathlib import Path

import pandas

from cppo_verl.evaluation import problems, store


def row(source="aime24", question="1+1?", truth="2", **more) -> dict:
    prompt, reward = [{"role": "user", "content": question}], {"style": "rule", "ground_truth": truth}
    return {"data_source": source, "prompt": prompt, "reward_model": reward, **more}


def write(path: Path, *rows: dict) -> Path:
    pandas.DataFrame(list(rows)).to_parquet(path, index=False)
    return path


def problem(number=0, source="aime24", question="1+1?", truth="2") -> problems.Problem:
    prompt = row(question=question)["prompt"]
    return problems.Problem(number, number, source, prompt, truth, {"index": number}, f"a.parquet, row {number + 1}")


def response(row=0, sample=0, text="Answer: 2", tokens=4, finish_reason="stop") -> store.Response:
    return store.Response(row, sample, text, tokens, finish_reason)
