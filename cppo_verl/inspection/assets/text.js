// The response's text: a span a token, in blocks that end at a newline, so that the browser lays out only what is seen.

const LEVELS = 16; // of the shading
const BARS = 10; // of the spending under a token
const LONGEST_BLOCK = 1500; // tokens without a newline, after which a block ends all the same

// Characters without a look of their own, and those that would turn the text around them
const UNSEEN = /[\u0000-\u001f\u007f-\u00a0\u00ad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufe00-\ufe0f\ufeff]/;
const SPECIAL = new RegExp(`[&<>]|${UNSEEN.source}`, "g");
const ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"};

function marked(text) {
  return text.replace(SPECIAL, c => ENTITIES[c] || mark(c));
}

function mark(c) {
  if (c === "\n") return '<b class="nl">\n</b>';
  if (c === "\t") return '<b class="tab">\t</b>';
  if (c >= "\ufe00" && c <= "\ufe0f") return c; // picks the look of the character before
  const code = c.charCodeAt(0);
  const name = code < 32 ? String.fromCharCode(0x2400 + code) : "U+" + code.toString(16).toUpperCase().padStart(4, "0");
  return `<b class="odd" data-name="${name}"></b>`;
}

/** Blocks of a response as {start, end, html}. */
function* blocks(r, k, scale) {
  let start = 0, parts = [];
  for (let t = 0; t < r.length; t++) {
    parts.push(span(r, k, t, scale));
    const ends = r.pieces[t].endsWith("\n") && !(t + 1 < r.length && r.pieces[t + 1].startsWith("\n"));
    if (ends || parts.length >= LONGEST_BLOCK || t + 1 === r.length) {
      yield {start, end: t + 1, html: parts.join("")};
      start = t + 1;
      parts = [];
    }
  }
}

function span(r, k, t, scale) {
  const piece = r.pieces[t];
  return `<i class="${classes(r, k, t, scale)}">${piece === "" ? '<b class="odd" data-name="\u25e6"></b>' : marked(piece)}</i>`;
}

function classes(r, k, t, scale) {
  if (r.own && !r.own[t]) return "tool";
  const found = ["d" + level(r["D" + k][t], scale)];
  if (r["S" + k]) {
    const share = r["S" + k][t] / r["limit" + k][t];
    found.push(share > 1 ? "over" : "s" + Math.round(BARS * Math.max(0, share || 0)));
  }
  const gate = r["gate" + k][t], cause = r["cause" + k][t];
  if (gate < 1) found.push(cause === PREFIX ? "prefix" : "own", gate > 0 ? "damped" : gate < 0 ? "turned" : "cut");
  else if (cause === CAPPED) found.push("capped");
  if (r.pieces[t].trim() === "" && r.pieces[t] !== "") found.push("blank");
  return found.join(" ");
}

/** The root of D over what it is shaded up to, so that the many small values can be told apart. */
function level(d, scale) {
  return scale > 0 && d > 0 ? Math.min(LEVELS - 1, Math.ceil((LEVELS - 1) * Math.sqrt(Math.min(1, d / scale)))) : 0;
}

/** Puts the text into ``place``; the blocks know their first token. */
function write(place, r, k, scale) {
  const parts = [];
  for (const block of blocks(r, k, scale)) parts.push(`<p data-start="${block.start}">${block.html}</p>`);
  place.innerHTML = parts.join("");
}

/** The token that an element of the text belongs to, or null. */
function tokenOf(element) {
  const token = element.closest && element.closest("i");
  if (!token || !token.parentNode.dataset.start) return null;
  let t = Number(token.parentNode.dataset.start);
  for (let before = token.previousElementSibling; before; before = before.previousElementSibling) t++;
  return t;
}

/** The element of token t. */
function elementOf(place, t) {
  const found = place.children;
  let low = 0, high = found.length - 1;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (Number(found[middle].dataset.start) <= t) low = middle; else high = middle - 1;
  }
  return found[low] ? found[low].children[t - Number(found[low].dataset.start)] : null;
}
