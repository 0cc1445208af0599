"""Claims, table of rules and a page of figures from a study's table alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas
from pandas import DataFrame, Series

from benchmarks.pocket import BINS
from benchmarks.pocket.grid import read
from cppo_verl import atomic
from cppo_verl.estimates import interval

TABLE = ("seconds", "start", "best", "final", "mean", "kept", "masked_share", "masked_share_token_threshold")
TABLE += ("masked_share_prefix_budget", "tv", "tv_first", "tv_last", "bound_usage", "gap", "gap_bound", "residual")
TABLE += ("bound_holds", "token_excess", "prefix_excess")
SPREAD = ("best", "final", "mean")  # given with the half-width of its interval
FIGURES = ("branch", "trace", "branch_stale", "trace_harsh")
MAIN = ("cppo", "dppo", "grpo", "cispo", "minpro", "trm_max", "trm_avg", "free")


def scores(runs: DataFrame, setting: str, rule: str, metric: str) -> Series:
    """A metric of a rule by seed."""
    own = runs[(runs.setting == setting) & (runs.rule == rule)]
    return own.set_index("seed")[metric]


def difference(runs: DataFrame, contrast: list, metric: str) -> Series:
    """metric of rule a less that of rule b, by seed; where b is a list, of its best by mean over the common seeds."""
    setting, a, other = contrast
    own = scores(runs, setting, a, metric)
    others = [scores(runs, setting, b, metric) for b in (other if isinstance(other, list) else [other])]
    seeds = [seed for seed in own.index if all(seed in each.index for each in others)]
    return own[seeds] - max((each[seeds] for each in others), key=lambda values: values.mean())


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
        for contrast in claim["contrasts"] + less:
            alone = difference(runs, contrast, metric)
            b = contrast[2] if isinstance(contrast[2], str) else "|".join(contrast[2])
            names = {"setting": contrast[0], "a": contrast[1], "b": b}
            contrasts.append(
                {"claim": claim["claim"], "metric": metric, **names, **_effect(alone), "wins": (alone > 0).sum()}
            )
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


def markdown(claims: DataFrame) -> str:
    """The table of claims; what each setting says alone is in the table of contrasts."""
    lines = ["| claim | verdict | effect [95%] | n |", "|---|---|---|---|"]
    for c in claims.itertuples():
        span = f"{c.effect:+.3f} [{c.low:+.3f}, {c.high:+.3f}]" if c.n > 1 else "–"
        lines.append(f"| {c.claim} | **{c.verdict}** | {c.metric} {span} | {c.n} |")
    return "\n".join(lines) + "\n"


def report(grid: dict[str, Any], out: Path, tables: Path, prefix: str = "") -> str:
    """Write claims, contrasts and rules as CSV to ``tables``, and figures; the claims as Markdown are returned."""
    runs, curves = read(out)
    claims, contrasts = judge(grid, runs)
    tables.mkdir(parents=True, exist_ok=True)
    for name, table in (("claims", claims), ("contrasts", contrasts), ("rules", rules_table(runs))):
        with atomic.replacing(tables / f"{prefix}{name}.csv") as part:
            table.to_csv(part, index=False, float_format="%.6g")
    if not grid.get("tabulated"):  # a grid about the region itself has no figures
        figures(grid, runs, curves, tables / f"{prefix}figures.png")
    return markdown(claims)


def figures(grid: dict[str, Any], runs: DataFrame, curves: DataFrame, file: Path) -> None:
    """A column a setting: learning curves, paired differences to DPPO, masks, divergence by position, bound."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    settings = [name for name in FIGURES if (runs.setting == name).any()]
    page, axes = plt.subplots(5, len(settings), figsize=(5 * len(settings), 22), squeeze=False, layout="constrained")
    for column, setting in enumerate(settings):
        own = runs[runs.setting == setting]
        rules = [rule for rule in grid["rules"] if (own.rule == rule).any()]
        means = own.groupby("rule").mean(numeric_only=True).loc[rules].fillna(0.0)
        main = [rule for rule in (*MAIN, *grid.get("drawn", ())) if rule in rules]
        _draw_curves(axes[0][column], axes[3][column], curves[curves.setting == setting], main)
        _draw_differences(axes[1][column], own, setting, [rule for rule in rules if rule != "dppo"])
        _draw_masks(axes[2][column], means)
        _draw_bound(axes[4][column], means)
        axes[0][column].set(title=f"{setting}: score (mean, 95%)", xlabel="rollout batch", ylim=(0, 1))
        axes[3][column].set(title="full-vocabulary TV along the response", xlabel="relative position", ylim=(0, None))
    with atomic.replacing(file) as part:
        page.savefig(part, dpi=90, format="png")
    plt.close(page)


def _draw_curves(scores, divergences, curves: DataFrame, rules: Sequence[str]) -> None:
    for place, rule in enumerate(rules):
        color = f"C{MAIN.index(rule) if rule in MAIN else len(MAIN) + place}"
        own = curves[curves.rule == rule]
        steps = own.groupby(own.step.astype(int))["score"].apply(lambda values: interval(list(values)))
        mean, low, high = zip(*steps, strict=True)
        scores.plot(steps.index, mean, color=color, label=rule)
        scores.fill_between(steps.index, low, high, color=color, alpha=0.1)
        bins = [name for b in range(BINS) if (name := f"tv_bin{b}") in own and own[name].notna().any()]
        divergences.plot([(i + 0.5) / len(bins) for i in range(len(bins))], own[bins].mean(), color=color)
    scores.legend(fontsize=7)


def _draw_differences(axis, runs: DataFrame, setting: str, rules: Sequence[str]) -> None:
    for height, rule in enumerate(rules):
        mean, low, high = interval(list(difference(runs, [setting, rule, "dppo"], "best")))
        axis.errorbar(mean, height, xerr=[[mean - low], [high - mean]], fmt="o", color="C0", capsize=2)
    axis.axvline(0, color="grey", lw=0.8)
    axis.set(title="best score less DPPO's, same seed (95%)", xlim=(-0.5, 0.5))
    _name_rows(axis, rules)


def _draw_masks(axis, means: DataFrame) -> None:
    left: Any = 0.0
    for part, label in (("token_threshold", "token or sequence threshold"), ("prefix_budget", "prefix budget")):
        shares = means[f"masked_share_{part}"]
        axis.barh(range(len(means)), shares, left=left, label=label)
        left = shares
    axis.set(title="masked share of tokens")
    axis.legend(fontsize=7)
    _name_rows(axis, means.index)


def _draw_bound(axis, means: DataFrame) -> None:
    """Over Theorem 1's residual: the certificate's sum, and where J is known exactly, the gap that it has to bound."""
    axis.semilogx(means["bound_usage"], range(len(means)), "o", label="realised sum")
    if "residual" in means and (means["residual"] > 0).all():
        axis.semilogx(means["gap"] / means["residual"], range(len(means)), "x", label="exact gap")
    axis.axvline(1, color="grey", lw=0.8)
    axis.set(title="share of Theorem 1's residual", xlim=(0.01, 300))
    axis.legend(fontsize=7, loc="center right")
    _name_rows(axis, means.index)


def _name_rows(axis, rules: Sequence[str]) -> None:
    axis.set_yticks(range(len(rules)), rules, fontsize=8)
    axis.invert_yaxis()
