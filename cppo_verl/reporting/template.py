"""The page's skeleton and style, for ``string.Template``. Nothing in it refers to anything outside the page."""

from string import Template

PAGE = Template("""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<style>$style</style>
</head>
<body>
<main>
<header>
<p class="kicker">$name</p>
<h1>$headline</h1>
<p class="detail">$detail</p>
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
<footer>$footer</footer>
</main>
</body>
</html>
""")

STYLE = """
:root {
  --page: #fbfaf7; --card: #ffffff; --ink: #22303c; --soft: #5d6975; --rule: #dfe4e8;
  --blue: #2b6cb0; --orange: #c05f1a; --teal: #2f8f83; --stone: #8d98a3;
  --early: #74a0d2; --middle: #3a76b8; --late: #123a66; --note: #fdf3e2;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --page: #14181d; --card: #1b2027; --ink: #e3e7eb; --soft: #9ba6b1; --rule: #323a43;
    --blue: #6ea8e6; --orange: #ee9a5c; --teal: #55bdae; --stone: #727e8b;
    --early: #517cae; --middle: #86b3e4; --late: #d3e5fa; --note: #2d2719;
  }
}
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
