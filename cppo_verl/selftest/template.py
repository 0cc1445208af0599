"""The skeleton of the selftest's page, over the report's style. Nothing in it refers to anything outside the page."""

from cppo_verl.reporting.template import page

TEMPLATE = page("""\
<header>
<p class="kicker">cppo-verl selftest</p>
<h1 class="$mood">
<span class="figures">$figures</span>
<span class="what">stages hold on this machine</span>
<span class="span">$span</span>
</h1>
</header>
<section aria-labelledby="overview">
<h2 id="overview">Stages</h2>
<ol class="overview">
$overview
</ol>
</section>
<section aria-labelledby="machine">
<h2 id="machine">Machine</h2>
<dl class="settings">
$facts
</dl>
</section>
$stages
""")

OWN_STYLE = """\
:root { --bad: #b3261e; --good: #2f8f83; }
@media screen and (prefers-color-scheme: dark) { :root { --bad: #f2867f; --good: #55bdae; } }
h1.holds .figures { color: var(--good); }
h1.fails .figures { color: var(--bad); }
.overview { list-style: none; margin: 0; padding: 0; border-top: 1px solid var(--rule); }
.overview li { border-bottom: 1px solid var(--rule); }
.overview a { display: grid; grid-template-columns: 1.5rem 6.5rem 1fr; gap: .5rem; padding: .45rem 0; color: inherit;
  text-decoration: none; line-height: 1.4; }
.overview a:hover span:last-child, .overview a:focus-visible span:last-child { text-decoration: underline; }
.overview b { font-weight: 600; }
.overview span:last-child { color: var(--soft); }
.holds .sign, .holds > .mark, .holds .verdict { color: var(--good); }
.fails .sign, .fails > .mark, .fails .verdict { color: var(--bad); font-weight: 600; }
.not-run .sign, .not-run .verdict, .noted > .mark { color: var(--soft); }
.stage h2 { padding-bottom: .2rem; scroll-margin-top: 1rem; }
.stage .verdict { margin-left: .4rem; font-size: .9rem; font-weight: 400; }
.stage .detail { padding-bottom: .7rem; }
.stage.holds tr.holds > .mark, .stage tr.noted > .mark { font-weight: 400; }
.because { padding: .6rem .9rem; background: var(--note); border-radius: .4rem; font-size: .9rem; }
.reason { margin: 0 0 1rem; padding: .8rem 1rem; background: var(--note); border-radius: .4rem; font-size: .78rem;
  line-height: 1.45; white-space: pre-wrap; overflow-wrap: anywhere; }
.stage th[scope=row] { width: 46%; }
.stage thead th:last-child, .stage .mark { text-align: left; padding-left: 1rem; }
.stage td { white-space: normal; }
.stage .mark { white-space: nowrap; }
.stage .note { display: block; color: var(--soft); font-size: .8rem; line-height: 1.4; }
@media (max-width: 44rem) {
  .overview a { grid-template-columns: 1.25rem 1fr; gap: .1rem .4rem; }
  .overview span:last-child { grid-column: 2; font-size: .9rem; }
  .stage thead { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
  .stage tr { display: grid; grid-template-columns: repeat(4, 1fr); gap: 0 .5rem; padding: .5rem 0;
    border-bottom: 1px solid var(--rule); }
  .stage th[scope=row] { grid-column: 1 / -1; width: auto; padding: 0 0 .2rem; border: 0; }
  .stage td { padding: 0; border: 0; text-align: left; }
  .stage td::before { display: block; content: attr(data-head); color: var(--soft); font-size: .7rem; }
  .stage td:empty { visibility: hidden; }
  .stage .mark { padding: 0; }
}
@media print { .stage { break-inside: auto; } .overview a { color: inherit; } }
"""
