// Under the text: the tokens from first to last, shaded; masks; and the spending S against its allowance on that axis.
// Without a prefix budget the plot holds each token's own divergence against delta.

const PAD = {left: 44, right: 10, top: 4, heat: 14, marks: 9, bottom: 17};

/** Draws response r at look k; returns {tokenAt(x), xOf(t)} in CSS pixels. */
function draw(canvas, r, k, scale, picked, seen) {
  const box = canvas.getBoundingClientRect(), dense = window.devicePixelRatio || 1;
  const width = Math.max(50, box.width), height = Math.max(50, box.height);
  canvas.width = Math.round(width * dense);
  canvas.height = Math.round(height * dense);
  const pen = canvas.getContext("2d");
  pen.scale(dense, dense);
  const colors = palette();
  pen.font = `11px ${getComputedStyle(canvas).fontFamily}`;
  const left = PAD.left, right = width - PAD.right, n = Math.max(1, r.length);
  const axis = {
    xOf: t => left + (right - left) * t / n,
    tokenAt: x => Math.max(0, Math.min(r.length - 1, Math.floor((x - left) / (right - left) * n))),
  };
  const room = {left, right, top: PAD.top + PAD.heat + PAD.marks, bottom: height - PAD.bottom};
  if (seen) {
    pen.fillStyle = colors.seen;
    pen.fillRect(axis.xOf(seen[0]), PAD.top, axis.xOf(seen[1]) - axis.xOf(seen[0]), height - PAD.bottom - PAD.top);
  }
  const columns = binned(r, k, left, right);
  drawHeat(pen, columns, scale, colors, left, right);
  drawMarks(pen, columns, colors);
  drawCurves(pen, r, k, columns, room, colors);
  drawAxis(pen, r, room, colors, height);
  if (r.length) drawNames(pen, r, k, room, colors, height);
  if (picked !== null && picked < r.length) {
    const x = (axis.xOf(picked) + axis.xOf(picked + 1)) / 2;
    line(pen, [[x, PAD.top], [x, room.bottom]], colors.ink, 1);
  }
  return axis;
}

function palette() {
  const style = getComputedStyle(document.documentElement);
  const names = ["ink", "soft", "rule", "own", "prefix", "spend", "seen", "heat"];
  return Object.fromEntries(names.map(name => [name, style.getPropertyValue("--" + name).trim()]));
}

/** One column a pixel, or a token where these are wider: largest D, whether masked and why, S and allowance. */
function binned(r, k, left, right) {
  const n = r.length, columns = Math.max(1, Math.min(n, Math.round(right - left)));
  const d = r["D" + k], w = r["w" + k], s = r["S" + k], limit = r["limit" + k], gate = r["gate" + k], cause = r["cause" + k];
  return Array.from({length: n ? columns : 0}, (_, c) => {
    const from = Math.floor(c * n / columns), to = Math.max(from + 1, Math.floor((c + 1) * n / columns));
    const bin = {x: left + (right - left) * from / n, end: left + (right - left) * to / n, d: 0, z: 0, own: false, prefix: false};
    for (let t = from; t < to; t++) {
      if (r.own && !r.own[t]) continue;
      bin.d = Math.max(bin.d, d[t] || 0);
      bin.z = Math.max(bin.z, (w ? w[t] : 1) * (d[t] || 0));
      if (gate[t] < 1) bin[cause[t] === PREFIX ? "prefix" : "own"] = true;
      if (s) { bin.s = s[t]; bin.limit = limit[t]; }
    }
    return bin;
  });
}

function drawHeat(pen, columns, scale, colors, left, right) {
  pen.fillStyle = colors.rule;
  pen.fillRect(left, PAD.top + PAD.heat, right - left, 0.5);
  pen.fillStyle = colors.heat;
  for (const bin of columns) {
    pen.globalAlpha = level(bin.d, scale) / (LEVELS - 1);
    pen.fillRect(bin.x, PAD.top, Math.max(0.6, bin.end - bin.x), PAD.heat);
  }
  pen.globalAlpha = 1;
}

function drawMarks(pen, columns, colors) {
  for (const bin of columns) {
    const x = (bin.x + bin.end) / 2, y = PAD.top + PAD.heat;
    if (bin.own) { pen.fillStyle = colors.own; pen.fillRect(x - 0.75, y + 1, 1.5, 7); }
    if (bin.prefix) { pen.fillStyle = colors.prefix; pen.fillRect(x - 0.75, y + 1, 1.5, 2.5); pen.fillRect(x - 0.75, y + 5, 1.5, 2.5); }
  }
}

function drawCurves(pen, r, k, columns, room, colors) {
  const spends = Boolean(r["S" + k]), delta = stepOf(r.i).delta;
  const values = columns.flatMap(bin => spends ? [bin.s, bin.limit] : [bin.z]).filter(Number.isFinite);
  const top = Math.max(1e-12, ...tops(values), spends || delta === null ? 0 : delta) * 1.06;
  const y = value => room.bottom - (room.bottom - room.top) * Math.max(0, Math.min(1, value / top));
  pen.fillStyle = colors.soft;
  pen.textAlign = "right";
  pen.textBaseline = "middle";
  for (const share of [0, 0.5, 1]) {
    const value = top / 1.06 * share;
    line(pen, [[room.left, y(value)], [room.right, y(value)]], colors.rule, 0.5);
    pen.fillText(shown(value), room.left - 5, y(value) + (share === 0 ? -3 : 0));
  }
  if (spends) {
    const known = columns.filter(bin => Number.isFinite(bin.s));
    const points = known.map(bin => [bin.end, y(bin.s)]);
    if (points.length) {
      pen.globalAlpha = 0.18;
      pen.fillStyle = colors.spend;
      pen.beginPath();
      pen.moveTo(points[0][0], room.bottom);
      for (const [px, py] of points) pen.lineTo(px, py);
      pen.lineTo(points[points.length - 1][0], room.bottom);
      pen.fill();
      pen.globalAlpha = 1;
    }
    line(pen, points, colors.spend, 1.6);
    line(pen, known.map(bin => [bin.end, y(bin.limit)]), colors.prefix, 1.3, [5, 3]);
  } else {
    pen.fillStyle = colors.spend;
    for (const bin of columns) pen.fillRect(bin.x, y(bin.z), Math.max(0.6, bin.end - bin.x - 0.2), room.bottom - y(bin.z));
    if (delta !== null) line(pen, [[room.left, y(delta)], [room.right, y(delta)]], colors.own, 1.3, [5, 3]);
  }
}

/** The largest of many numbers, as a list (spreading 100 thousand would overflow the stack). */
function tops(values) {
  let largest = 0;
  for (const value of values) if (value > largest) largest = value;
  return [largest];
}

/** Which line is which, in the middle below the axis. */
function drawNames(pen, r, k, room, colors, height) {
  const spends = Boolean(r["S" + k]), delta = stepOf(r.i).delta;
  const names = spends ? [["spent", colors.spend], ["allowed", colors.prefix]]
    : [[r["w" + k] ? "w\u00b7D" : "D", colors.spend], ...(delta === null ? [] : [["\u03b4", colors.own]])];
  const widths = names.map(([name]) => pen.measureText(name).width + 34);
  let x = (room.left + room.right - widths.reduce((a, b) => a + b)) / 2;
  pen.textAlign = "left";
  names.forEach(([name, color], n) => {
    line(pen, [[x, height - 8], [x + 18, height - 8]], color, 1.6, n ? [5, 3] : []);
    pen.fillStyle = color;
    pen.fillText(name, x + 22, height - 4);
    x += widths[n];
  });
}

function drawAxis(pen, r, room, colors, height) {
  pen.fillStyle = colors.soft;
  pen.textBaseline = "alphabetic";
  pen.textAlign = "left";
  pen.fillText(r.length ? "token 1" : "no tokens", room.left, height - 4);
  if (r.length > 1) {
    pen.textAlign = "right";
    pen.fillText(String(r.length), room.right, height - 4);
  }
}

function line(pen, points, color, width, dash = []) {
  pen.strokeStyle = color;
  pen.lineWidth = width;
  pen.setLineDash(dash);
  pen.beginPath();
  for (const [x, y] of points) pen.lineTo(x, y);
  pen.stroke();
  pen.setLineDash([]);
}
