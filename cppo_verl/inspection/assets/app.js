// What is chosen, and what happens on clicks and keys.

const $ = id => document.getElementById(id);
const PAGE_OF_LIST = 200;
const chosen = {step: "0", sign: "", order: "", i: null, t: null, k: 0, scale: "step"};
let list = [], listed = PAGE_OF_LIST, response = null, axis = null, hovered = null, drawing = 0;
let doing = Promise.resolve();

/* The list */

function matching() {
  const wanted = chosen.step === "" ? null : Number(chosen.step);
  const found = [];
  for (let i = 0; i < rows.step.length; i++) {
    if (wanted !== null && rows.step[i] !== wanted) continue;
    if (chosen.sign === "+" && !(rows.A[i] > 0)) continue;
    if (chosen.sign === "-" && !(rows.A[i] < 0)) continue;
    found.push(i);
  }
  const by = {masked: i => share(i), length: i => rows.length[i], largest: i => rows.largest[i]}[chosen.order];
  return by ? found.sort((a, b) => by(b) - by(a) || a - b) : found;
}

function share(i) {
  return rows.own[i] ? rows.masked[i] / rows.own[i] : 0;
}

function refresh(keep = true) {
  list = matching();
  listed = PAGE_OF_LIST;
  fillList();
  if (list.length) return visit(keep && list.includes(chosen.i) ? chosen.i : list[0]);
}

function fillList() {
  $("list").replaceChildren(...list.slice(0, listed).map(item));
  $("more").hidden = list.length <= listed;
  const where = chosen.step === "" ? count(index.steps.length, "step") : "this step";
  $("count").textContent = list.length ? `${count(list.length, "response")} of ${where}`
    : `No response of ${where} has ${chosen.sign === "+" ? "A > 0" : "A < 0"}.`;
  markList();
}

function item(i) {
  const entry = document.createElement("li"), button = document.createElement("button");
  button.type = "button";
  button.dataset.i = i;
  const of = chosen.step === "" ? `<b>step ${stepOf(i).step}</b> ` : "";
  const own = 100 * rows.token[i] / (rows.own[i] || 1), prefix = 100 * rows.prefix[i] / (rows.own[i] || 1);
  button.innerHTML = `<span class="who">${of}${nameOf(i)}</span><span class="sign ${rows.A[i] < 0 ? "minus" : "plus"}">`
    + `A ${signed(rows.A[i])}</span><span class="size">${count(rows.length[i], "token")}</span>`
    + `<span class="share">${percent(rows.masked[i], rows.own[i])} masked</span>`
    + `<span class="meter"><span class="own" style="width:${own}%"></span><span class="prefix" style="width:${prefix}%"></span></span>`;
  entry.append(button);
  return entry;
}

function markList() {
  for (const button of $("list").querySelectorAll("button")) {
    const here = Number(button.dataset.i) === chosen.i;
    button.setAttribute("aria-current", here ? "true" : "false");
    if (here) keepInView(button.parentNode);
  }
}

/** Scrolls the list, and nothing around it, to the entry. */
function keepInView(entry) {
  const room = $("list").getBoundingClientRect(), box = entry.getBoundingClientRect();
  if (box.top < room.top || box.bottom > room.bottom) $("list").scrollTop += box.top - room.top - room.height / 3;
  if (box.left < room.left || box.right > room.right) $("list").scrollLeft += box.left - room.left - room.width / 3;
}

/** Prompts are numbered within their step. */
function nameOf(i) {
  let from = i;
  while (from > 0 && rows.step[from - 1] === rows.step[i]) from--;
  const prompts = [...new Set(rows.uid.slice(from, i + 1))];
  const output = rows.output[i] ? `, output ${rows.output[i] + 1}` : "";
  return `prompt ${prompts.indexOf(rows.uid[i]) + 1}, answer ${rows.sample[i] + 1}${output}`;
}

/* One response */

async function visit(i, t = null) {
  chosen.i = i;
  chosen.t = t;
  hovered = null;
  if (chosen.step !== "" && Number(chosen.step) !== rows.step[i]) {
    chosen.step = String(rows.step[i]);
    $("step").value = chosen.step;
    list = matching();
    if (!list.includes(i)) { chosen.sign = $("sign").value = ""; list = matching(); }
    fillList();
  }
  markList();
  $("name").textContent = `Step ${stepOf(i).step}, ${nameOf(i)}`;
  $("rule").textContent = [stepOf(i).rule, ...stepOf(i).says].join(" \u00b7 ");
  try {
    const found = await unpacked(i);
    if (chosen.i !== i) return; // another one was asked for meanwhile
    response = found;
    trouble("");
  } catch (error) {
    if (chosen.i !== i) return;
    response = null;
    trouble(error.message);
    return;
  }
  chosen.k = response["gate" + chosen.k] ? chosen.k : 0;
  fillLooks();
  fillScales();
  $("prompt").querySelector("div").innerHTML = marked(response.prompt);
  render();
  if (t !== null) pick(t, true);
  remember();
  document.body.dataset.shown = i;
}

function trouble(text) {
  $("trouble").hidden = !text;
  $("trouble").textContent = text;
  $("dock").hidden = Boolean(text);
  if (text) { $("text").replaceChildren(); $("facts").replaceChildren(); }
}

/** The text, the facts and the plot, after what they depend on has changed. */
function render() {
  write($("text"), response, chosen.k, scale());
  if (!response.length) $("text").innerHTML = '<p class="none">The response is empty: it has no token.</p>';
  fillFacts();
  fillKey();
  tell();
  redraw();
}

function fillLooks() {
  const updates = rows.updates[chosen.i];
  $("look-of").hidden = updates.length < 2;
  const names = ["first", "last"].map((word, k) => updates[k] === null ? word : `${word}, number ${updates[k] + 1}`);
  $("look").replaceChildren(...updates.map((_, k) => new Option(names[k], k, false, k === chosen.k)));
}

function fillScales() {
  const step = stepOf(chosen.i);
  const named = step.delta === null ? `99.9% of the step's D, ${shown(step.scale)}` : `\u03b4 ${shown(step.delta)}`;
  const own = `largest here, ${shown(largest())}`;
  $("scale").replaceChildren(new Option(named, "step"), new Option(own, "response"));
  $("scale").value = chosen.scale;
}

function largest() {
  return tops(response["D" + chosen.k])[0];
}

function scale() {
  return chosen.scale === "response" ? largest() : stepOf(chosen.i).scale;
}

function fillFacts() {
  const i = chosen.i, k = chosen.k, tally = causes(response, k), own = rows.own[i];
  $("text").classList.toggle("whole", own > 0 && tally.own === own); // a mark on each token would say no more
  const facts = [
    ["A", response.A ? `${signed(rows.A[i])} on average` : signed(rows.A[i])],
    ["Reward", shown(rows.reward[i])],
    ["Tokens", own === rows.length[i] ? String(own) : `${own} of ${rows.length[i]} its own`],
    ["Masked", `${tally.own + tally.prefix} (${percent(tally.own + tally.prefix, own)})`],
    [stepOf(i).rule.startsWith("trm") ? "Whole response" : "Own threshold", String(tally.own), "own"],
  ];
  if (response["S" + k]) facts.push(["Prefix budget", String(tally.prefix), "prefix"]);
  if (tally.capped) facts.push(["Weight cut", String(tally.capped), "capped"]);
  if (rows.delta_b[i][k] !== null) facts.push(["\u03b4_b here", shown(rows.delta_b[i][k])]);
  if (rows.behind[i] !== null) facts.push(["Versions behind", String(rows.behind[i])]);
  if (rows.updates[i][k] !== null) facts.push(["Update", `${rows.updates[i][k] + 1} of ${stepOf(i).updates}`]);
  $("facts").innerHTML = facts.map(([name, value, kind]) =>
    `<div><dt${kind ? ` class="${kind}"` : ""}>${name}</dt><dd>${value}</dd></div>`).join("");
}

function causes(r, k) {
  const tally = {own: 0, prefix: 0, capped: 0};
  const gate = r["gate" + k], cause = r["cause" + k];
  for (let t = 0; t < r.length; t++) {
    if (r.own && !r.own[t]) continue;
    if (gate[t] < 1) tally[cause[t] === PREFIX ? "prefix" : "own"]++;
    else if (cause[t] === CAPPED) tally.capped++;
  }
  return tally;
}

function fillKey() {
  const r = response, spends = Boolean(r["S" + chosen.k]), shades = [1, 4, 8, 12, 15].map(d => `<i class="d${d}">\u2007</i>`).join("");
  const parts = [`<span>D 0 ${shades} ${shown(scale())}</span>`];
  parts.push('<span><i class="own cut">masked</i> own threshold</span>');
  if (spends) parts.push('<span><i class="prefix cut">masked</i> prefix budget</span>');
  if (spends) parts.push('<span><i class="s3">a</i><i class="s6">b</i><i class="s9">c</i><i class="over">d</i> spent, of the allowance; over it</span>');
  if (r.own) parts.push('<span><i class="tool">text</i> not its own</span>');
  $("key").innerHTML = parts.join("");
}

/* One token */

function pick(t, scroll = false) {
  const before = chosen.t === null ? null : elementOf($("text"), chosen.t);
  if (before) before.classList.remove("picked");
  chosen.t = t;
  if (t !== null) {
    const element = elementOf($("text"), t);
    element.classList.add("picked");
    if (scroll) show(element);
  }
  tell();
  redraw();
  remember();
}

/** Scrolls so that the element is between the bar above and the dock below. */
function show(element) {
  element.scrollIntoView({block: "nearest"}); // lays out a block that was not seen yet
  const box = element.getBoundingClientRect(), bottom = $("dock").getBoundingClientRect().top;
  if (box.top < 60 || box.bottom > bottom - 8) window.scrollBy(0, box.top - Math.max(80, bottom / 2));
}

function tell() {
  const t = hovered !== null ? hovered : chosen.t, r = response, k = chosen.k;
  $("token").setAttribute("aria-live", hovered === null ? "polite" : "off");
  if (t === null || !r.length) {
    $("token").innerHTML = r.length ? '<p class="idle">Point at a token, or tap it, for its numbers.</p>' : "";
    return;
  }
  const say = verdict(r, k, t), own = !r.own || r.own[t];
  const kind = own && r["gate" + k][t] < 1 ? (r["cause" + k][t] === PREFIX ? "prefix" : "own") : "";
  const numbers = own ? numbersAt(r, k, t) : [["log \u03bc", shown((r.rollout || r.mu)[t])]];
  $("token").innerHTML = `<p class="which"><b>${t + 1}</b> of ${r.length} <code>${escaped(plainPiece(r.pieces[t]))}</code>`
    + ` id ${r.id[t]} <strong class="${kind}">${say}</strong></p><dl>`
    + numbers.map(([name, value]) => `<div><dt>${name}</dt><dd>${value}</dd></div>`).join("") + "</dl>";
}

function numbersAt(r, k, t) {
  const moved = r["moved" + k][t], w = r["w" + k], d = r["D" + k][t], delta = stepOf(r.i).delta;
  const found = [["D", shown(d)]];
  if (w) found.push(["w", shown(w[t])], ["w\u00b7D", shown(w[t] * d)]);
  if (delta !== null) found.push(["\u03b4", shown(delta)]);
  if (r["S" + k]) found.push(["S spent", shown(r["S" + k][t])], ["allowed", shown(r["limit" + k][t])]);
  if (r.rollout) found.push(["log \u03bc", shown(r.rollout[t])]);
  found.push([r.rollout ? "log start" : "log \u03bc", shown(r.mu[t])], ["log \u03c0", sum(r.mu[t], moved)], ["\u03c1", shown(Math.exp(moved))]);
  found.push(["A", signed(r.A ? r.A[t] : rows.A[r.i])]);
  return found;
}

function escaped(text) {
  return text.replace(/[&<>]/g, c => ENTITIES[c]);
}

/* The plot */

function redraw() {
  cancelAnimationFrame(drawing);
  drawing = requestAnimationFrame(() => {
    if (!response) return;
    axis = draw($("plot"), response, chosen.k, scale(), hovered !== null ? hovered : chosen.t, seen());
    const spends = response["S" + chosen.k], limit = response["limit" + chosen.k], last = response.length - 1;
    $("plot").setAttribute("aria-label", spends && last >= 0
      ? `Spending over the response: ${shown(spends[last])} at the end, of ${shown(limit[last])} allowed.`
      : "Divergence of each token over the response.");
  });
}

/** The tokens on the screen, about; null when all are. */
function seen() {
  const from = tokenAtHeight(0), to = tokenAtHeight($("dock").getBoundingClientRect().top);
  return to - from >= response.length - 1 ? null : [from, to];
}

/** The token, with a fraction, that the text has reached at y on the screen. */
function tokenAtHeight(y) {
  const found = $("text").children;
  let low = 0, high = found.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (found[middle].getBoundingClientRect().bottom < y) low = middle + 1; else high = middle;
  }
  const box = found[low].getBoundingClientRect(), part = Math.max(0, Math.min(1, (y - box.top) / (box.height || 1)));
  return Number(found[low].dataset.start || 0) + part * found[low].childElementCount;
}

/* Going from one to the next */

function turn(by) {
  const at = list.indexOf(chosen.i) + by;
  if (at >= listed) { listed += PAGE_OF_LIST; fillList(); }
  if (at >= 0 && at < list.length) return visit(list[at]);
}

function turnStep(by) {
  const now = chosen.step === "" ? rows.step[chosen.i] : Number(chosen.step), next = now + by;
  if (next < 0 || next >= index.steps.length) return;
  chosen.step = $("step").value = String(next);
  return refresh(false);
}

function move(by) {
  if (response) moveTo(chosen.t === null ? (by > 0 ? 0 : response.length - 1) : chosen.t + by);
}

function moveTo(t) {
  if (response && response.length) pick(Math.max(0, Math.min(response.length - 1, t)), true);
}

function nextMasked(by) {
  if (!response) return;
  const gate = response["gate" + chosen.k], own = response.own, n = response.length;
  for (let step = 1; step <= n; step++) {
    const from = chosen.t === null ? (by > 0 ? -1 : n) : chosen.t;
    const t = (from + by * step + 2 * n) % n;
    if (gate[t] < 1 && (!own || own[t])) return pick(t, true);
  }
}

function set(name, value) {
  chosen[name] = $(name).value = value;
  return refresh();
}

function setLook(k) {
  if (!response || !response["gate" + k]) return;
  chosen.k = k;
  fillLooks();
  fillScales();
  render();
  if (chosen.t !== null) pick(chosen.t);
}

/* The address, so that a link opens the same token */

function remember() {
  const parts = [`step=${stepOf(chosen.i).step}`, `response=${chosen.i - rows.step.indexOf(rows.step[chosen.i]) + 1}`];
  if (chosen.t !== null) parts.push(`token=${chosen.t + 1}`);
  try { history.replaceState(null, "", "#" + parts.join("&")); } catch { /* some viewers forbid it */ }
}

function recall() {
  const said = new URLSearchParams(location.hash.slice(1));
  const whole = name => /^[0-9]+$/.test(said.get(name) || "") ? Number(said.get(name)) : null;
  const first = rows.step.findIndex(s => index.steps[s].step === whole("step")), i = first + (whole("response") || 1) - 1;
  if (first < 0 || rows.step[i] !== rows.step[first]) return false;
  const t = whole("token");
  chosen.step = $("step").value = String(rows.step[i]);
  list = matching();
  fillList();
  visit(i, t !== null && t >= 1 && t <= rows.length[i] ? t - 1 : null);
  return true;
}

/* Clicks and keys */

const KEYS = {
  j: () => turn(1), k: () => turn(-1), "]": () => turnStep(1), "[": () => turnStep(-1),
  ArrowRight: () => move(1), ArrowLeft: () => move(-1), n: () => nextMasked(1), N: () => nextMasked(-1),
  Home: () => moveTo(0), End: () => moveTo(Infinity), "?": () => $("keys").showModal(), Escape: () => pick(null),
  "+": () => set("sign", "+"), "-": () => set("sign", "-"), 0: () => set("sign", ""),
  m: () => set("order", "masked"), l: () => set("order", "length"), d: () => set("order", "largest"), o: () => set("order", ""),
  u: () => setLook(1 - chosen.k),
};

function listen() {
  document.addEventListener("keydown", event => {
    const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
    if (event.ctrlKey || event.metaKey || event.altKey || $("keys").open || (typing && event.key !== "?")) return;
    const act = KEYS[event.key];
    if (!act || chosen.i === null) return;
    event.preventDefault();
    doing = doing.then(act, act); // a key after another one means what that one has brought
  });
  $("step").addEventListener("change", () => { chosen.step = $("step").value; refresh(chosen.step === ""); });
  for (const name of ["sign", "order"]) $(name).addEventListener("change", () => set(name, $(name).value));
  $("scale").addEventListener("change", () => { chosen.scale = $("scale").value; render(); if (chosen.t !== null) pick(chosen.t); });
  $("look").addEventListener("change", () => setLook(Number($("look").value)));
  const clicks = {
    "step-before": () => turnStep(-1), "step-after": () => turnStep(1), before: () => turn(-1), after: () => turn(1),
    "next-masked": () => nextMasked(1), help: () => $("keys").showModal(), more: () => { listed += PAGE_OF_LIST; fillList(); },
  };
  for (const [id, act] of Object.entries(clicks)) $(id).addEventListener("click", act);
  $("list").addEventListener("click", event => {
    const button = event.target.closest("button");
    if (button) visit(Number(button.dataset.i));
  });
  $("text").addEventListener("click", event => {
    const t = tokenOf(event.target);
    if (t !== null && String(getSelection()) === "") pick(t === chosen.t ? null : t);
  });
  $("text").addEventListener("pointermove", event => event.pointerType === "mouse" && hover(tokenOf(event.target)));
  $("text").addEventListener("pointerleave", () => hover(null));
  $("plot").addEventListener("pointermove", event => event.pointerType === "mouse" && axis && hover(onPlot(event)));
  $("plot").addEventListener("pointerleave", () => hover(null));
  $("plot").addEventListener("click", event => axis && response.length && pick(onPlot(event), true));
  window.addEventListener("scroll", redraw, {passive: true});
  window.addEventListener("resize", redraw);
  window.addEventListener("hashchange", recall);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
}

function onPlot(event) {
  return response.length ? axis.tokenAt(event.clientX - $("plot").getBoundingClientRect().left) : null;
}

function hover(t) {
  if (t === hovered || !response) return;
  hovered = t;
  tell();
  redraw();
}

/** The response that lost most tokens, the first of those; the first of all where none lost any. */
function opening() {
  return rows.masked.reduce((most, masked, i) => masked > rows.masked[most] ? i : most, 0);
}

function start() {
  for (const note of index.notes) $("notes").append(Object.assign(document.createElement("li"), {textContent: note}));
  $("notes").hidden = !index.notes.length;
  $("step").append(new Option("all steps", ""), ...index.steps.map((step, s) => new Option(String(step.step), s)));
  listen();
  if (!rows.step || !rows.step.length) return trouble("No response was recorded.");
  chosen.i = opening();
  $("step").value = chosen.step = String(rows.step[chosen.i]);
  if (!recall()) refresh();
}

start();
