"""Claims, table of rules and a page of figures from a study's table alone."""

from pathlib import Path
from typing import Any

import pandas
from pandas import DataFrame, Series

from benchmarks.pocket.grid import read
from cppo_verl import atomic
from cppo_verl.estimates import interval

TABLE = ("seconds", "start", "best", "final", "mean", "kept", "masked_share", "masked_share_token_threshold")
TABLE += ("masked_share_prefix_budget", "tv", "tv_first", "tv_last", "bound_usage", "gap", "gap_bound", "residual")
TABLE += ("bound_holds", "token_excess", "prefix_excess")
SPREAD = ("best", "final", "mean")  # given with the half-width of its interval
FIGURES = ("branch", "trace", "branch_stale", "trace_harsh")
MAIN = ("cppo", "dppo", "grpo", "cispo", "minpro", "trm_max", "trm_avg", "free")


def difference(runs: DataFrame, contrast: list, metric: str) -> Series:
    """metric of rule a less that of rule b, by seed; where b is a list, of its best by mean over the common seeds."""
    setting, a, other = contrast
    by_rule = runs[runs.setting == setting].pivot(index="seed", columns="rule", values=metric)
    others = other if isinstance(other, list) else [other]
    common = by_rule.reindex(columns=[a, *others]).dropna()
    return common[a] - common[max(others, key=lambda rule: common[rule].mean())]


def pooled(runs: DataFrame, contrasts: list, metric: str) -> Series:
    """Mean over the contrasts by seed, for the seeds that all of them have."""
    return pandas.concat([difference(runs, c, metric) for c in contrasts], axis=1, join="inner").mean(axis=1)


def verdict(kind: str, low: float, high: float, margin: float) -> str:
    """``supported``, ``not supported`` or ``undecided here``, as grid.yaml says."""
    if kind == "equal":
        inside, outside = -margin <= low and high <= margin, low > margin or high < -margin
    else:
        inside, outside = low > 0, high < 0
    return "supported" if inside else "not supported" if outside else "undecided here"


def judge(grid: dict[str, Any], runs: DataFrame) -> tuple[DataFrame, DataFrame]:
    """A row a claim, and a row a contrast."""
    claims, contrasts = [], []
    for claim in grid["claims"]:
        metric, less = claim.get("metric", "best"), claim.get("less", [])
        values = pooled(runs, claim["contrasts"], metric)
        if less:
            values = (values - pooled(runs, less, metric)).dropna()
        found = _effect(values)
        decided = verdict(claim["kind"], found["low"], found["high"], grid["margin"])
        claims.append({"claim": claim["claim"], "verdict": decided, "metric": metric, **found})
        for setting, a, b in claim["contrasts"] + less:
            alone = difference(runs, [setting, a, b], metric)
            names = {"setting": setting, "a": a, "b": b if isinstance(b, str) else "|".join(b)}
            row = {"claim": claim["claim"], "metric": metric, **names, **_effect(alone), "wins": (alone > 0).sum()}
            contrasts.append(row)
    return DataFrame(claims), DataFrame(contrasts)


def _effect(values: Series) -> dict[str, Any]:
    mean, low, high = interval(list(values))
    return {"effect": mean, "low": low, "high": high, "n": len(values)}


def rules_table(runs: DataFrame) -> DataFrame:
    """A row a setting and rule: number of seeds, mean and half-width of each score, means of the rest."""
    rows = []
    for (setting, rule), own in runs.groupby(["setting", "rule"], sort=False):
        row: dict[str, Any] = {"setting": setting, "rule": rule, "n": len(own)}
        for name in TABLE:
            values = list(own[name].dropna()) if name in own else []
            if values:
                mean, _, high = interval(values)
                row |= {name: mean} | ({f"{name}_half": high - mean} if name in SPREAD else {})
        rows.append(row)
    return DataFrame(rows)


def report(grid: dict[str, Any], out: Path, tables: Path, prefix: str = "") -> None:
    """Write claims, contrasts and rules as CSV to ``tables``, and figures."""
    runs, curves = read(out)
    claims, contrasts = judge(grid, runs)
    tables.mkdir(parents=True, exist_ok=True)
    for name, table in (("claims", claims), ("contrasts", contrasts), ("rules", rules_table(runs))):
        atomic.write(tables / f"{prefix}{name}.csv", table.to_csv(index=False, float_format="%.6g"))
    if not grid.get("tabulated"):  # a grid about the region itself has no figures
        figures(grid, runs, curves, tables / f"{prefix}figures.png")


def figures(grid: dict[str, Any], runs: DataFrame, curves: DataFrame, file: Path) -> None:
    """A column a setting: learning curves, differences to DPPO, masks, divergence by position, and over Theorem 1's
    residual the certificate's sum and, where J is known exactly, the gap that it has to bound."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    settings = [name for name in FIGURES if (runs.setting == name).any()]
    page, axes = plt.subplots(5, len(settings), figsize=(5 * len(settings), 22), squeeze=False, layout="constrained")
    for setting, (scores, differences, masks, positions, bound) in zip(settings, axes.T, strict=True):
        own = runs[runs.setting == setting]
        rules = [rule for rule in grid["rules"] if (own.rule == rule).any()]
        means = own.groupby("rule").mean(numeric_only=True).loc[rules].fillna(0.0)
        for place, rule in enumerate((*MAIN, *grid.get("drawn", ()))):  # a rule has one colour in all settings
            if rule not in rules:
                continue
            curve = curves[(curves.setting == setting) & (curves.rule == rule)]
            steps = curve.groupby(curve.step.astype(int))["score"].apply(lambda values: interval(list(values)))
            mean, low, high = zip(*steps, strict=True)
            scores.plot(steps.index, mean, color=f"C{place}", label=rule)
            scores.fill_between(steps.index, low, high, color=f"C{place}", alpha=0.1)
            bins = curve.filter(like="tv_bin").mean().dropna()
            positions.plot([(i + 0.5) / len(bins) for i in range(len(bins))], bins, color=f"C{place}")
        others = [rule for rule in rules if rule != "dppo"]
        for height, rule in enumerate(others):
            mean, low, high = interval(list(difference(runs, [setting, rule, "dppo"], "best")))
            differences.errorbar(mean, height, xerr=[[mean - low], [high - mean]], fmt="o", color="C0", capsize=2)
        threshold, budget = means["masked_share_token_threshold"], means["masked_share_prefix_budget"]
        masks.barh(range(len(rules)), threshold, label="token or sequence threshold")
        masks.barh(range(len(rules)), budget, left=threshold, label="prefix budget")
        bound.semilogx(means["bound_usage"], range(len(rules)), "o", label="realised sum")
        if "residual" in means and (means["residual"] > 0).all():
            bound.semilogx(means["gap"] / means["residual"], range(len(rules)), "x", label="exact gap")
        scores.set(title=f"{setting}: score (mean, 95%)", xlabel="rollout batch", ylim=(0, 1))
        differences.set(title="best score less DPPO's, same seed (95%)", xlim=(-0.5, 0.5))
        masks.set(title="masked share of tokens")
        positions.set(title="full-vocabulary TV along the response", xlabel="relative position", ylim=(0, None))
        bound.set(title="share of Theorem 1's residual", xlim=(0.01, 300))
        for axis, place in ((scores, "best"), (masks, "best"), (bound, "center right")):
            axis.legend(fontsize=7, loc=place)
        for axis, names, middle in ((differences, others, 0), (masks, rules, None), (bound, rules, 1)):
            axis.set_yticks(range(len(names)), names, fontsize=8)
            axis.invert_yaxis()
            if middle is not None:
                axis.axvline(middle, color="grey", lw=0.8)
    with atomic.replacing(file) as part:
        page.savefig(part, dpi=90, format="png")
    plt.close(page)
