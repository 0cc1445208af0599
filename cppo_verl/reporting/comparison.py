"""Runs side by side (``outcomes``) as the tables of a page: methods, paired differences, seed by seed."""

from collections.abc import Sequence
from html import escape
from math import isfinite

from cppo_verl.reporting import findings
from cppo_verl.reporting.intervals import interval
from cppo_verl.reporting.outcomes import MEASURES, Comparison, Difference, Outcome, known, seed_count
from cppo_verl.reporting.scores import ACCURACY

PAIRING = (
    "A run is compared with the baseline's run of the same seed, up to the last step that both validated, so what the "
    "seeds have in common drops out. Higher or lower is said where the interval lies on one side of 0."
)


def comparison_html(comparison: Comparison) -> str:
    """The tables of one model: methods, paired differences, seed by seed."""
    parts = [_methods_html(comparison)]
    if len(comparison.methods) > 1:
        parts.append(_differences_html(comparison))
    if len(comparison.seeds) > 1 or any(len(outcomes) > 1 for outcomes in comparison.methods.values()):
        parts.append(_seeds_html(comparison))
    return "\n".join(parts)


def _methods_html(comparison: Comparison) -> str:
    heads = ("Method", "Seeds", "Best", "Final", "Masked", "Time a step", "Run")
    rows = []
    top = _top(comparison)
    for name, outcomes in comparison.methods.items():
        scores = "".join(_score_td(outcomes, measure, comparison, name == top[measure]) for measure in MEASURES)
        fell = sum(outcome.collapsed for outcome in outcomes)
        flag = f"<small>{fell} of {len(outcomes)} collapsed</small>" if fell else ""
        hours = findings.mean_of(known(outcomes, "hours"))
        run = findings.ABSENT if hours is None else findings.duration(hours)
        shown = [findings.masked_text(outcomes), findings.seconds_text(outcomes), run]
        rest = "".join(f"<td><span>{escape(text)}</span></td>" for text in shown)
        again = f"<small>{len(outcomes)} runs</small>" if len(outcomes) > seed_count(outcomes) else ""
        seeds = f"<td><span>{seed_count(outcomes)}</span>{again}</td>"
        rows.append(f'<tr><th scope="row">{escape(name)}{flag}</th>{seeds}{scores}{rest}</tr>')
    percent = ", percent" * (comparison.kind == ACCURACY)
    caption = (
        f"{findings.kind_name(comparison).capitalize()}{percent}: mean over the seeds, with its interval. "
        f"{findings.COUNTING} {findings.INTERVALS} Masked: mean share of the response tokens over the steps (of GRPO "
        "and CISPO, what their losses report as clipped). Time a step: median; run: sum over the logged steps."
    )
    return _table("Methods", caption, heads, rows)


def _score_td(outcomes: Sequence[Outcome], measure: str, comparison: Comparison, best: bool) -> str:
    values = known(outcomes, measure)
    if not values:
        return '<td class="unscored"><span>no score</span></td>'
    mean, low, high = interval(values)
    text = escape(findings.score_text(mean, comparison))
    shown = f"<strong>{text}</strong>" if best else text
    low_to_high = f"{findings.score_text(low, comparison)} to {findings.score_text(high, comparison)}"
    span = low_to_high if isfinite(low) else findings.NO_INTERVAL
    steps = sorted({o.steps[MEASURES.index(measure)] for o in outcomes if o.steps is not None})
    at = f"step {steps[0]}" if len(steps) == 1 else f"steps {steps[0]}–{steps[-1]}"
    return f"<td><span>{shown}</span><small>{escape(span)}</small><small>{at}</small></td>"


def _differences_html(comparison: Comparison) -> str:
    each = [value for d in comparison.differences for value in _extent(d)]
    reach = max(map(abs, each), default=0.0) or 1.0
    heads = ("Method", "Pairs", "Best", "Final", "Final, drawn")
    rows = []
    for name in [name for name in comparison.methods if name != comparison.baseline]:
        best, final = (comparison.difference(name, measure) for measure in MEASURES)
        assert best is not None and final is not None
        tds = "".join(_difference_td(d, comparison) for d in (best, final))
        rows.append(
            f'<tr><th scope="row">{escape(name)}</th><td><span>{len(final.by_seed)}</span></td>{tds}'
            f'<td class="drawn">{_whiskers(final, reach, comparison)}</td></tr>'
        )
    points = " in points" if comparison.kind == ACCURACY else ""
    caption = (
        f"Each method less {comparison.baseline}{points}. {PAIRING} Drawn: the interval, its mean, and each pair as a "
        f"dot, from {findings.score_text(-reach, comparison)} to {findings.score_text(reach, comparison)} around 0."
    )
    return _table("Paired differences", caption, heads, rows)


def _difference_td(difference: Difference, comparison: Comparison) -> str:
    values = list(difference.by_seed.values())
    if not values:
        return f'<td class="unscored"><span>{findings.NO_PAIR}</span></td>'
    mean, low, high = interval(values)
    span = f"{findings.signed(low, comparison)} to {findings.signed(high, comparison)}" if isfinite(low) else ""
    small = "".join(f"<small>{escape(text)}</small>" for text in (span, findings.verdict(difference)) if text)
    return f"<td><span>{escape(findings.signed(mean, comparison))}</span>{small}</td>"


def _whiskers(difference: Difference, reach: float, comparison: Comparison) -> str:
    """Interval, mean and pairs on a line around 0, 120 units wide."""
    values = list(difference.by_seed.values())
    if not values:
        return ""
    mean, low, high = interval(values)

    def at(value: float) -> str:
        return f"{60 + 56 * max(-1.0, min(1.0, value / reach)):.1f}"

    parts = ['<line x1="60" y1="1" x2="60" y2="21" class="zero"></line>']
    if isfinite(low):
        parts.append(f'<line x1="{at(low)}" y1="8" x2="{at(high)}" y2="8" class="span"></line>')
    parts += [f'<circle cx="{at(value)}" cy="16" r="1.8" class="pair"></circle>' for value in values]
    parts.append(f'<circle cx="{at(mean)}" cy="8" r="3.2" class="mean"></circle>')
    words = f"{difference.method} less {difference.baseline}: {findings.difference_text(difference, comparison)}"
    return f'<svg viewBox="0 0 120 22" role="img" aria-label="{escape(words)}">{"".join(parts)}</svg>'


def _extent(difference: Difference) -> list[float]:
    """What of a difference is drawn, less the far ends of wide intervals."""
    values = list(difference.by_seed.values()) if difference.measure == "final" else []
    if not values:
        return []
    mean, low, high = interval(values)
    return [*values, *([low, high] if isfinite(low) and len(values) > 2 else []), mean]


def _seeds_html(comparison: Comparison) -> str:
    seeds = comparison.seeds
    unnamed = max((sum(not o.seed for o in outcomes) for outcomes in comparison.methods.values()), default=0)
    heads = ("Method", *(f"seed {seed}" for seed in seeds), *["seed unknown"] * bool(unnamed))
    rows = []
    for name, outcomes in comparison.methods.items():
        tds = [_runs_td([o for o in outcomes if o.seed == seed], comparison) for seed in seeds]
        tds += [_runs_td([o for o in outcomes if not o.seed], comparison)] * bool(unnamed)
        rows.append(f'<tr><th scope="row">{escape(name)}</th>{"".join(tds)}</tr>')
    caption = "Final score of every run, and its best in small print. What several runs of one seed scored is listed."
    return _table("Seed by seed", caption, heads, rows)


def _runs_td(outcomes: Sequence[Outcome], comparison: Comparison) -> str:
    if not outcomes:
        return f'<td class="missing"><span>{findings.ABSENT}</span></td>'
    parts = []
    for outcome in outcomes:
        if outcome.final is None or outcome.best is None:
            parts.append("<span>no score</span>")
            continue
        cross = " (collapsed)" * outcome.collapsed
        best = f"best {findings.score_text(outcome.best, comparison)}{cross}"
        parts.append(
            f"<span>{escape(findings.score_text(outcome.final, comparison))}</span><small>{escape(best)}</small>"
        )
    return f"<td>{''.join(parts)}</td>"


def _table(name: str, caption: str, heads: Sequence[str], rows: Sequence[str]) -> str:
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in heads)
    body = "\n".join(rows)
    wide = " many" if len(heads) > 5 else ""
    return (
        f'<h3>{name}</h3>\n<p class="caption">{escape(caption)}</p>\n'
        f'<div class="wide" role="region" tabindex="0" aria-label="{name}">\n<table class="scores own{wide}">\n'
        f'<caption class="aside">{name}</caption>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody>\n</table>\n</div>"
    )


def _top(comparison: Comparison) -> dict[str, str | None]:
    """The method with the highest mean in each measure, where there is more than one to choose from."""
    found: dict[str, str | None] = {}
    for measure in MEASURES:
        each = {name: known(outcomes, measure) for name, outcomes in comparison.methods.items()}
        means = {name: findings.mean_of(values) for name, values in each.items()}
        scored = {name: mean for name, mean in means.items() if mean is not None}
        found[measure] = max(scored, key=lambda name: scored[name]) if len(scored) > 1 else None
    return found
