"""Claims, table of rules and a page of figures from runs.csv and curves.csv alone."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.pocket import BINS
from benchmarks.pocket.grid import Spec, read, write
from cppo_verl import atomic
from cppo_verl.reporting.intervals import interval

TABLE = ("seconds", "start", "best", "final", "mean", "kept", "masked_share", "masked_share_token_threshold")
TABLE += ("masked_share_prefix_budget", "tv", "tv_first", "tv_last", "bound_usage", "gap", "gap_bound", "residual")
TABLE += ("bound_holds", "token_excess", "prefix_excess")
EXCESS = ("token_excess", "prefix_excess")  # where all prefixes can be enumerated
MASKED = ("masked_share", "masked_share_prefix_budget")
FIGURES = ("branch", "trace", "branch_stale", "trace_harsh")
MAIN = ("cppo", "dppo", "grpo", "cispo", "minpro", "trm_max", "trm_avg", "free")
Runs = dict[Spec, dict[str, float]]


def load_runs(out: Path) -> Runs:
    """Numbers of every run."""
    runs = {}
    for row in read(out / "runs.csv"):
        numbers = {k: float(v) for k, v in row.items() if v and k not in ("setting", "rule", "seed", "spec")}
        runs[Spec(row["setting"], row["rule"], int(row["seed"]))] = numbers
    return runs


def difference(runs: Runs, contrast: list, metric: str) -> dict[int, float]:
    """metric of rule a less that of rule b, by seed; where b is a list, of its best by mean over the common seeds."""
    setting, a, other = contrast
    others = other if isinstance(other, list) else [other]
    seeds = [s.seed for s in runs if s.setting == setting and s.rule == a]
    seeds = [seed for seed in seeds if all(Spec(setting, b, seed) in runs for b in others)]
    if not seeds:
        return {}
    b = max(others, key=lambda name: fmean(runs[Spec(setting, name, seed)][metric] for seed in seeds))
    return {seed: runs[Spec(setting, a, seed)][metric] - runs[Spec(setting, b, seed)][metric] for seed in seeds}


def pooled(runs: Runs, contrasts: list, metric: str) -> dict[int, float]:
    """Mean over the contrasts by seed, for the seeds that all of them have."""
    each = [difference(runs, contrast, metric) for contrast in contrasts]
    return {seed: fmean(d[seed] for d in each) for seed in each[0] if all(seed in d for d in each)}


def verdict(kind: str, low: float, high: float, margin: float) -> str:
    """``supported``, ``not supported`` or ``undecided here``, as grid.yaml says."""
    if kind == "equal":
        inside, outside = -margin <= low and high <= margin, low > margin or high < -margin
    else:
        inside, outside = low > 0, high < 0
    return "supported" if inside else "not supported" if outside else "undecided here"


def judge(grid: dict[str, Any], runs: Runs) -> tuple[list[dict], list[dict]]:
    """A row a claim, and a row a contrast."""
    claims, contrasts = [], []
    for claim in grid["claims"]:
        metric, less = claim.get("metric", "best"), claim.get("less", [])
        values = pooled(runs, claim["contrasts"], metric)
        if less:
            base = pooled(runs, less, metric)
            values = {seed: values[seed] - base[seed] for seed in values if seed in base}
        mean, low, high = interval(list(values.values()))
        found = {"effect": mean, "low": low, "high": high, "n": len(values)}
        decided = verdict(claim["kind"], low, high, grid["margin"])
        claims.append({"claim": claim["claim"], "verdict": decided, "metric": metric, **found})
        for contrast in claim["contrasts"] + less:
            alone = list(difference(runs, contrast, metric).values())
            mean, low, high = interval(alone)
            b = contrast[2] if isinstance(contrast[2], str) else "|".join(contrast[2])
            names = {"setting": contrast[0], "a": contrast[1], "b": b}
            found = {"effect": mean, "low": low, "high": high, "n": len(alone), "wins": sum(x > 0 for x in alone)}
            contrasts.append({"claim": claim["claim"], "metric": metric, **names, **found})
    return claims, contrasts


def rules_table(runs: Runs) -> list[dict]:
    """A row a setting and rule: number of seeds, mean and half-width of each score, means of the rest."""
    rows = []
    for setting, rule in dict.fromkeys((s.setting, s.rule) for s in runs):
        of = [r for s, r in runs.items() if (s.setting, s.rule) == (setting, rule)]
        row: dict[str, Any] = {"setting": setting, "rule": rule, "n": len(of)}
        for name in TABLE:
            values = [r[name] for r in of if name in r]
            if values:
                mean, _, high = interval(values)
                row |= {name: mean} | ({f"{name}_half": high - mean} if name in ("best", "final", "mean") else {})
        rows.append(row)
    return rows


def markdown(claims: list[dict], contrasts: list[dict]) -> str:
    """The table of claims, with what each setting says alone."""
    lines = ["| claim | verdict | effect [95% interval] | n | by setting |", "|---|---|---|---|---|"]
    for c in claims:
        own = [x for x in contrasts if x["claim"] == c["claim"]]
        several = len({x["b"] for x in own}) > 1
        each = "; ".join(f"{x['setting']}{' ' + x['b'] if several else ''} {_span(x)}" for x in own)
        lines.append(f"| {c['claim']} | **{c['verdict']}** | {c['metric']} {_span(c)} | {c['n']} | {each} |")
    return "\n".join(lines) + "\n"


def rules_markdown(rows: list[dict], settings: Sequence[str] = FIGURES, excess: bool = False) -> str:
    """The rules of the settings, the most masked first; ``excess`` adds how far they end outside the trust region."""
    lines = ["| setting | rule | n | masked | by the budget | best | final | kept half | TV after the updates |"]
    lines.append("|---|---|---|---|---|---|---|---|---|")
    if excess:
        lines = [lines[0] + " w D / delta | P / (delta_b W) |", lines[1] + "---|---|"]
    for setting in settings:
        own = [row for row in rows if row["setting"] == setting]
        for r in sorted(own, key=lambda row: -row["masked_share"]):
            shares = " | ".join(f"{round(r[name], 3) + 0:.1%}" for name in MASKED)
            scores = " | ".join(f"{r[name]:.3f} ± {r[f'{name}_half']:.3f}" for name in ("best", "final"))
            lines.append(
                f"| {setting} | {r['rule']} | {r['n']} | {shares} | {scores} | {r['kept']:.0%} | {r['tv_last']:.3f} |"
                + "".join(f" {r[name]:.1f} |" if name in r else " – |" for name in EXCESS if excess)
            )
    return "\n".join(lines) + "\n"


def _span(row: dict) -> str:
    if row["n"] < 2:
        return f"n = {row['n']}"
    return f"{row['effect']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"


def report(grid: dict[str, Any], out: Path) -> None:
    """Write claims, contrasts and rules as CSV, two of them as Markdown too, and figures.png beside the runs."""
    runs = load_runs(out)
    (claims, contrasts), rules = judge(grid, runs), rules_table(runs)
    write(out / "claims.csv", claims)
    write(out / "contrasts.csv", contrasts)
    write(out / "rules.csv", rules)
    own = grid.get("tabulated")  # a grid about the region itself says which settings its table has
    table = rules_markdown(rules, own, excess=True) if own else rules_markdown(rules)
    for name, text in (("claims", markdown(claims, contrasts)), ("rules", table)):
        atomic.write(out / f"{name}.md", text)
    if own:
        return
    figures(grid, runs, read(out / "curves.csv"), out / "figures.png")


def figures(grid: dict[str, Any], runs: Runs, curves: list[dict], file: Path) -> None:
    """A column a setting: learning curves, paired differences to DPPO, masks, divergence by position, bound."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    settings = [name for name in FIGURES if any(spec.setting == name for spec in runs)]
    page, axes = plt.subplots(5, len(settings), figsize=(5 * len(settings), 22), squeeze=False, layout="constrained")
    for column, setting in enumerate(settings):
        rules = [rule for rule in grid["rules"] if any((s.setting, s.rule) == (setting, rule) for s in runs)]
        mine = [c for c in curves if c["setting"] == setting]
        main = [rule for rule in (*MAIN, *grid.get("drawn", ())) if rule in rules]
        _draw_curves(axes[0][column], axes[3][column], mine, main)
        _draw_differences(axes[1][column], runs, setting, [rule for rule in rules if rule != "dppo"])
        _draw_masks(axes[2][column], runs, setting, rules)
        _draw_bound(axes[4][column], runs, setting, rules)
        axes[0][column].set(title=f"{setting}: score (mean, 95%)", xlabel="rollout batch", ylim=(0, 1))
        axes[3][column].set(title="full-vocabulary TV along the response", xlabel="relative position", ylim=(0, None))
    with atomic.replacing(file) as part:
        page.savefig(part, dpi=90, format="png")
    plt.close(page)


def _draw_curves(scores, divergences, curves: list[dict], rules: list[str]) -> None:
    for place, rule in enumerate(rules):
        color, own = (
            f"C{MAIN.index(rule) if rule in MAIN else len(MAIN) + place}",
            [c for c in curves if c["rule"] == rule],
        )
        steps = sorted({int(c["step"]) for c in own})
        spans = [interval([float(c["score"]) for c in own if int(c["step"]) == s]) for s in steps]
        scores.plot(steps, [mean for mean, _, _ in spans], color=color, label=rule)
        scores.fill_between(steps, [s[1] for s in spans], [s[2] for s in spans], color=color, alpha=0.1)
        bins = [[float(c[f"tv_bin{b}"]) for c in own if c.get(f"tv_bin{b}")] for b in range(BINS)]
        means = [fmean(b) for b in bins if b]
        divergences.plot([(i + 0.5) / len(means) for i in range(len(means))], means, color=color)
    scores.legend(fontsize=7)


def _draw_differences(axis, runs: Runs, setting: str, rules: list[str]) -> None:
    for height, rule in enumerate(rules):
        mean, low, high = interval(list(difference(runs, [setting, rule, "dppo"], "best").values()))
        axis.errorbar(mean, height, xerr=[[mean - low], [high - mean]], fmt="o", color="C0", capsize=2)
    axis.axvline(0, color="grey", lw=0.8)
    axis.set(title="best score less DPPO's, same seed (95%)", xlim=(-0.5, 0.5))
    _name_rows(axis, rules)


def _draw_masks(axis, runs: Runs, setting: str, rules: list[str]) -> None:
    left = [0.0] * len(rules)
    for part, label in (("token_threshold", "token or sequence threshold"), ("prefix_budget", "prefix budget")):
        shares = [_mean_of(runs, setting, rule, f"masked_share_{part}") for rule in rules]
        axis.barh(range(len(rules)), shares, left=left, label=label)
        left = shares
    axis.set(title="masked share of tokens")
    axis.legend(fontsize=7)
    _name_rows(axis, rules)


def _draw_bound(axis, runs: Runs, setting: str, rules: list[str]) -> None:
    """Over Theorem 1's residual: the certificate's sum, and where J is known exactly, the gap that it has to bound."""
    realised = [_mean_of(runs, setting, rule, "bound_usage") for rule in rules]
    axis.semilogx(realised, range(len(rules)), "o", label="realised sum")
    residuals = [_mean_of(runs, setting, rule, "residual") for rule in rules]
    if all(residuals):
        gaps = [
            _mean_of(runs, setting, rule, "gap") / residual for rule, residual in zip(rules, residuals, strict=True)
        ]
        axis.semilogx(gaps, range(len(rules)), "x", label="exact gap")
    axis.axvline(1, color="grey", lw=0.8)
    axis.set(title="share of Theorem 1's residual", xlim=(0.01, 300))
    axis.legend(fontsize=7, loc="center right")
    _name_rows(axis, rules)


def _name_rows(axis, rules: list[str]) -> None:
    axis.set_yticks(range(len(rules)), rules, fontsize=8)
    axis.invert_yaxis()


def _mean_of(runs: Runs, setting: str, rule: str, name: str) -> float:
    values = [r[name] for s, r in runs.items() if (s.setting, s.rule) == (setting, rule) and name in r]
    return fmean(values) if values else 0.0
