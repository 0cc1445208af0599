// Numbers and causes in words.

const PREFIX = 2, CAPPED = 3; // causes of cppo_verl/recording/record.py
const MINUS = "\u2212";

/** Three digits: 0.482, 12.3, 1.2e-9. */
function shown(x) {
  if (x === null || x === undefined || Number.isNaN(x)) return "not a number";
  if (!Number.isFinite(x)) return x > 0 ? "\u221e" : MINUS + "\u221e";
  const size = Math.abs(x);
  const text = size === 0 ? "0" : size >= 1000 && size < 1e7 ? x.toFixed(0)
    : size < 1e-4 || size >= 1e7 ? x.toExponential(2) : x.toPrecision(3);
  return text.replace("-", MINUS).replace("e-", "e" + MINUS).replace("e+", "e");
}

/** The sum of two numbers of 13 bits, no finer than they are. */
function sum(a, b) {
  const unit = 10 ** Math.ceil(Math.log10((Math.abs(a) + Math.abs(b)) * 2 ** -13));
  return shown(unit > 0 ? Math.round((a + b) / unit) * unit + 0 : a + b);
}

function percent(part, whole) {
  const share = whole ? 100 * part / whole : 0;
  return (share > 0 && share < 0.1 ? "<0.1" : share.toFixed(1).replace(/\.0$/, "")) + "%";
}

function signed(x) {
  return x > 0 ? "+" + shown(x) : shown(x);
}

function count(n, word) {
  return `${n} ${word}${n === 1 ? "" : "s"}`;
}

/** What became of token t's update at look k, in a few words. */
function verdict(r, k, t) {
  if (r.own && !r.own[t]) return "not the policy's own token: no update, no spending";
  const gate = r["gate" + k][t], cause = r["cause" + k][t];
  if (gate < 1) {
    const what = gate === 0 ? "masked" : gate > 0 ? `damped to ${shown(gate)}` : `turned round, ${shown(-gate)} of its size`;
    if (stepOf(r.i).rule.startsWith("trm")) return `${what} with its whole response`;
    return `${what}: ${cause === PREFIX ? "prefix budget" : "own threshold"}`;
  }
  if (cause === CAPPED) return "kept, its importance weight was cut";
  return over(r, k, t) ? "kept over its limit: it moves back toward the rollout" : "kept";
}

/** Whether the token is over its own threshold or the prefix over its allowance. */
function over(r, k, t) {
  const delta = stepOf(r.i).delta, w = r["w" + k] ? r["w" + k][t] : 1;
  const prefix = r["S" + k] && r["S" + k][t] > r["limit" + k][t];
  return prefix || (delta !== null && w * r["D" + k][t] > delta);
}

function stepOf(i) {
  return index.steps[rows.step[i]];
}

/** A token for the eye, on one line. */
function plainPiece(piece) {
  return piece === "" ? "part of a character" : JSON.stringify(piece).slice(1, -1).replace(/\\"/g, '"');
}
