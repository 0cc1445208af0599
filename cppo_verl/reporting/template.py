"""The page's skeleton and style, for ``string.Template``. Nothing in it refers to anything outside the page."""

from string import Template

_HEAD = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="%s">
<title>$title</title>
<style>$style</style>
</head>
<body>
<main>
"""

_FOOT = """\
<footer>$footer</footer>
</main>
</body>
</html>
"""


def page(main: str, scheme: str = "light dark") -> Template:
    """A whole page around ``main``; ``title``, ``style`` and ``footer`` are filled in beside main's own names.

    Args:
        scheme: what the page is drawn for, of ``light`` and ``dark``.
    """
    return Template(_HEAD % scheme + main + _FOOT)


PAGE = page("""\
<header>
<p class="kicker">$name</p>
<h1>$headline</h1>
<p class="detail">$detail</p>
$recorded
</header>
$notes
<section aria-labelledby="settings">
<h2 id="settings">Settings</h2>
$settings
</section>
<section aria-labelledby="panels">
<h2 id="panels">The run, step by step</h2>
<div class="panels">
$panels
</div>
</section>
<section aria-labelledby="numbers">
<h2 id="numbers">Numbers</h2>
$numbers
</section>
""")

_LIGHT = """
:root {
  --page: #fbfaf7; --card: #ffffff; --ink: #22303c; --soft: #5d6975; --rule: #dfe4e8;
  --blue: #2b6cb0; --orange: #c05f1a; --teal: #2f8f83; --stone: #8d98a3;
  --early: #74a0d2; --middle: #3a76b8; --late: #123a66; --note: #fdf3e2;
}
"""

_DARK = """\
@media screen and (prefers-color-scheme: dark) {
  :root {
    --page: #14181d; --card: #1b2027; --ink: #e3e7eb; --soft: #9ba6b1; --rule: #323a43;
    --blue: #6ea8e6; --orange: #ee9a5c; --teal: #55bdae; --stone: #727e8b;
    --early: #517cae; --middle: #86b3e4; --late: #d3e5fa; --note: #2d2719;
  }
}
"""

_REST = """\
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  overflow-wrap: anywhere;
}
main { max-width: 70rem; margin: 0 auto; padding: clamp(1.25rem, 4vw, 3.5rem) clamp(1rem, 4vw, 2.5rem) 3rem; }
h1, h2, h3, p, dl, figure { margin: 0; }
header { padding-bottom: 1.75rem; }
.kicker { color: var(--soft); font-size: .9rem; letter-spacing: .01em; }
h1 { margin: .35rem 0 .75rem; font-weight: 600; line-height: 1.15; }
h1 .what { display: block; font-size: 1.15rem; font-weight: 500; line-height: 1.35; }
h1 .figures {
  display: block; padding: .15rem 0; font-size: clamp(2.5rem, 10vw, 4.25rem); letter-spacing: -.025em; line-height: 1.1;
  font-variant-numeric: tabular-nums;
}
h1 .before, h1 .arrow { color: var(--soft); font-weight: 400; }
h1 .span { display: block; font-size: 1.15rem; font-weight: 400; color: var(--soft); line-height: 1.35; }
a { color: var(--blue); text-underline-offset: .2em; }
.detail { max-width: 44rem; color: var(--soft); font-size: .95rem; }
.notes { margin: 0 0 1.75rem; padding: .8rem 1rem .8rem 2rem; background: var(--note); border-radius: .4rem;
  font-size: .9rem; }
section { padding-top: 1.5rem; }
h2 { padding-bottom: .7rem; font-size: 1.15rem; font-weight: 600; }
h3 { font-size: 1rem; font-weight: 600; line-height: 1.3; }
.settings { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .75rem 1.25rem;
  border-top: 1px solid var(--rule); border-bottom: 1px solid var(--rule); padding: .9rem 0; }
.settings dt { color: var(--soft); font-size: .8rem; line-height: 1.4; }
.settings dd { margin: 0; font-variant-numeric: tabular-nums; line-height: 1.4; }
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1rem; }
figure { display: flex; flex-direction: column; background: var(--card); border: 1px solid var(--rule);
  border-radius: .5rem; padding: 1rem; break-inside: avoid; }
figure.empty { align-self: start; }
figcaption { padding-top: .5rem; color: var(--soft); font-size: .875rem; line-height: 1.5; }
figcaption p + p { padding-top: .35rem; }
.plot { display: block; width: 100%; height: auto; margin-top: .5rem; font-family: inherit; }
.plot * { stroke-linejoin: round; }
table { width: 100%; border-collapse: collapse; font-size: .9rem; line-height: 1.4;
  font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); font-size: .875rem; padding-bottom: .5rem; }
th, td { padding: .4rem .35rem; border-bottom: 1px solid var(--rule); text-align: right; font-weight: 400;
  vertical-align: baseline; }
td { white-space: nowrap; }
th[scope=row] { text-align: left; padding-left: 0; width: 34%; }
thead th { color: var(--soft); font-size: .8rem; }
thead th:first-child { text-align: left; padding-left: 0; }
th:last-child, td:last-child { padding-right: 0; }
.absent { color: var(--soft); font-style: italic; }
footer { margin-top: 2rem; color: var(--soft); font-size: .8rem; }
.aside { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
@media (max-width: 30rem) {
  figure { padding: .8rem .6rem; }
  table { font-size: .8rem; }
  th, td { padding: .4rem .2rem; }
  .settings { grid-template-columns: 1fr 1fr; }
}
@page { margin: 14mm; }
@media print {
  :root { --page: #ffffff; --note: #f4f4f4; }
  html { font-size: 9.5pt; }
  main { max-width: none; padding: 0; }
  .panels { grid-template-columns: 1fr 1fr; gap: 4mm; }
  figure { padding: 3mm; }
  h1 .figures { font-size: 30pt; }
  h2 { break-after: avoid; }
  tr, .settings > div { break-inside: avoid; }
  * { -webkit-print-color-adjust: exact; print-color-adjust: exact; }
}
"""

STYLE = _LIGHT + _DARK + _REST

MANY_PAGE = page(
    """\
<header>
<h1>$title</h1>
$summary
<nav aria-label="Contents"><ul>$contents</ul></nav>
</header>
$notes
$tables
$models
<section aria-labelledby="runs">
<h2 id="runs">Runs</h2>
$runs
</section>
""",
    scheme="light",
)

MANY_STYLE = (
    _LIGHT
    + _REST
    + """
:root { --best: #f3ead9; }
h1 { font-size: clamp(1.6rem, 5vw, 2.4rem); text-wrap: balance; }
h3 { padding: 1.25rem 0 .2rem; }
nav ul { display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; margin: 1rem 0 0; padding: 0; list-style: none;
  font-size: .9rem; }
.wide { overflow-x: auto; }
.wide:focus-visible { outline: 2px solid var(--blue); outline-offset: 3px; }
caption { max-width: 46rem; padding-bottom: .8rem; }
.scores { table-layout: fixed; min-width: 19.5rem; }
.scores th, .scores td { text-align: center; vertical-align: top; padding: .5rem .25rem; }
.scores thead th { vertical-align: bottom; overflow-wrap: break-word; }
.scores th:first-child { text-align: left; width: 5.6rem; }
.scores th[scope=row] { font-weight: 600; padding-left: 0; }
.scores th[scope=rowgroup] { font-weight: 600; padding: 1.3rem 0 .45rem; border-bottom: 2px solid var(--ink); }
.scores td { white-space: normal; }
.scores td > span { display: block; font-size: 1.05rem; line-height: 1.3; white-space: nowrap; }
.scores td.step > span { font-size: .9rem; line-height: 1.5; }
.scores td small { display: block; color: var(--soft); font-size: .75rem; line-height: 1.35; }
.scores td { overflow-wrap: normal; }
.scores td i { font-style: normal; white-space: nowrap; }
.scores td i.word { white-space: normal; }
.scores .step { vertical-align: top; }
.scores td strong { font-weight: 700; background: var(--best); padding: 0 .3em; border-radius: .25em; }
.scores .missing > span, .scores .unscored > span, .scores .collapse > span { color: var(--soft); font-style: italic; }
.scores .collapse > span { color: #9b2c2c; }
.finding { max-width: 46rem; padding-top: .35rem; color: var(--soft); }
.own { min-width: 22rem; max-width: 46rem; table-layout: auto; }
.own.many { min-width: 34rem; max-width: 60rem; }
.own th[scope=row] small { display: block; font-weight: 400; color: #9b2c2c; font-size: .75rem; }
.own .drawn { width: 26%; min-width: 7rem; }
.own .drawn svg { display: block; width: 100%; height: auto; }
.own .zero { stroke: var(--soft); stroke-width: .6; }
.own .span { stroke: var(--blue); stroke-width: 1.6; stroke-linecap: round; }
.own .mean { fill: var(--blue); }
.own .pair { fill: var(--stone); }
.caption { max-width: 46rem; padding-bottom: .8rem; color: var(--soft); font-size: .875rem; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1rem; margin: 0; padding: 0 0 .8rem; list-style: none;
  font-size: .85rem; }
.legend li { display: flex; align-items: center; gap: .4rem; white-space: nowrap; }
.legend svg { width: 2rem; height: .6rem; flex: none; }
figure .legend { padding: .5rem 0 0; }
figure h4 { margin: 0; font-size: .95rem; font-weight: 600; line-height: 1.3; }
.panels { grid-template-columns: repeat(auto-fill, minmax(min(100%, 19rem), 1fr)); }
.panels.one { grid-template-columns: minmax(0, 34rem); }
.runs { min-width: 44rem; }
.runs td { white-space: nowrap; }
.runs th, .runs td { text-align: left; overflow-wrap: normal; padding-right: .8rem; }
.runs th[scope=row] { width: 24%; overflow-wrap: anywhere; }
.runs .number { text-align: right; }
.runs .remarks { width: 30%; white-space: normal; overflow-wrap: anywhere; color: var(--soft); }
@media (max-width: 30rem) {
  .scores { font-size: .8rem; }
  .scores th:first-child { width: 4.1rem; }
  .scores th, .scores td { padding: .45rem .1rem; }
  .scores td > span { font-size: .95rem; }
  .scores td small { font-size: .68rem; }
  .scores td.step > span { font-size: .7rem; line-height: 1.75; }
  .scores td strong { padding: 0 .1em; }
  .by-benchmark .word { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
}
@media print {
  .wide { overflow: visible; }
  nav { display: none; }
  .scores th, .scores td { padding: .15rem .2rem; }
  .lead, .picture.one { break-inside: avoid; }
  .scores .block, .scores thead { break-after: avoid; }
  .lead { break-after: avoid; }
  .model { break-before: page; }
  .panels { display: block; font-size: 0; orphans: 1; widows: 1; }
  .panels figure { display: inline-block; width: 32%; margin: 0 1% 2mm 0; vertical-align: top; font-size: 8pt; }
  .panels.one figure { width: 85mm; }
  .runs { min-width: 0; font-size: 7.5pt; }
}
"""
)
