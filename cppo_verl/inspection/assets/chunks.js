// The index, and responses unpacked when they are asked for. The layout of a chunk: cppo_verl/inspection/chunks.py.

const index = JSON.parse(document.getElementById("index").textContent);
const rows = index.responses;
const KEPT_UNPACKED = 6; // unpacked responses, the last ones looked at
const kept = new Map();

const BROKEN = "This page is not whole, and the response's numbers are missing. Copy the file again, or write it anew: "
  + "cppo-verl inspect RUN";
const OLD = "This browser cannot unpack the page. One from 2023 or later can.";

/** Everything about response i: prompt, pieces (one string a token), and an array of numbers by name. */
function unpacked(i) {
  const found = kept.get(i) || unpack(i);
  kept.delete(i);
  kept.set(i, found);
  if (kept.size > KEPT_UNPACKED) kept.delete(kept.keys().next().value);
  return found;
}

async function unpack(i) {
  if (!("DecompressionStream" in window)) throw new Error(OLD);
  const packed = (await arrived("r" + i)).textContent;
  try {
    return arrays(i, await inflated(bytesOf(packed)));
  } catch {
    throw new Error(BROKEN);
  }
}

/** The element, once its end is there: the page may still be on its way. */
function arrived(id) {
  return new Promise((resolve, reject) => {
    (function look() {
      const found = document.getElementById(id);
      if (found && found.nextElementSibling) resolve(found);
      else if (document.readyState !== "loading") reject(new Error(BROKEN));
      else setTimeout(look, 5);
    })();
  });
}

function bytesOf(base64) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(base64);
  const text = atob(base64), bytes = new Uint8Array(text.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

async function inflated(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

function arrays(i, bytes) {
  const length = rows.length[i], texts = {prompt: rows.texts[i][0], text: rows.texts[i][1]};
  const found = {i, length};
  let at = 0;
  for (const [name, kind] of index.layouts[rows.layout[i]]) {
    const width = kind === "bytes" ? texts[name] : length * Number(kind[1]);
    const part = bytes.subarray(at, at += width);
    if (part.length !== width) throw new Error(BROKEN);
    found[name] = kind === "bytes" ? part : numbersOf(part, kind, length);
  }
  const utf8 = new TextDecoder();
  let start = 0;
  found.pieces = Array.from(found.piece, size => utf8.decode(found.text.subarray(start, start += size)));
  found.prompt = utf8.decode(found.prompt);
  return found;
}

/** Numbers whose bytes lie in planes. */
function numbersOf(part, kind, length) {
  if (kind === "u1") return part;
  const width = Number(kind[1]), whole = new Uint8Array(part.length);
  for (let b = 0; b < width; b++) {
    for (let t = 0; t < length; t++) whole[t * width + b] = part[b * length + t];
  }
  return kind === "f4" ? new Float32Array(whole.buffer) : new Uint32Array(whole.buffer);
}
