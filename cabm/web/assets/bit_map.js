// The numbers of the tile under the pointer, the finger or the keys. `element` and `trigger` are Gradio's.
let parsed = { text: null, tiles: null };

function drawing() {
  const figure = element.querySelector(".bit-map");
  if (!figure) return null;
  if (parsed.text !== figure.dataset.tiles) {
    parsed = { text: figure.dataset.tiles, tiles: JSON.parse(figure.dataset.tiles) };
  }
  const svg = figure.querySelector("svg");
  return { svg, tiles: parsed.tiles, tip: figure.querySelector(".tip"), box: figure.querySelector(".chosen") };
}

function indexOf(lines, at) {
  let index = 0;
  while (index < lines.length - 2 && at >= lines[index + 1]) index++;
  return index;
}

function tileAt(d, event) {
  const frame = d.svg.getBoundingClientRect();
  const x = ((event.clientX - frame.left) / frame.width) * d.tiles.columns.at(-1);
  const y = ((event.clientY - frame.top) / frame.height) * d.tiles.rows.at(-1);
  return indexOf(d.tiles.rows, y) * (d.tiles.columns.length - 1) + indexOf(d.tiles.columns, x);
}

function words(tiles, tile) {
  const columns = tiles.columns.length - 1;
  const lines = [`row ${Math.floor(tile / columns) + 1}, column ${(tile % columns) + 1}`];
  const all = tiles.bypassed[tile] >= 100;
  if (tiles.score.length) lines.push(`edge score ${tiles.score[tile].toFixed(2)}`);
  if (tiles.bits.length) lines.push(all ? "no bits: bicubic" : `${tiles.bits[tile].toFixed(2)} bits`);
  if (tiles.ms.length) lines.push(`${tiles.ms[tile].toFixed(1)} ms`);
  if (tiles.bypassed[tile] && !all) lines.push(`${tiles.bypassed[tile]} % bypassed`);
  return lines;
}

function choose(d, tile) {
  const { rows, columns } = d.tiles;
  const row = Math.floor(tile / (columns.length - 1)), column = tile % (columns.length - 1);
  const set = (name, value) => d.box.setAttribute(name, value);
  set("x", columns[column]); set("y", rows[row]);
  set("width", columns[column + 1] - columns[column]); set("height", rows[row + 1] - rows[row]);
  d.svg.dataset.tile = tile;
  d.tip.innerHTML = words(d.tiles, tile).map((line) => `<span>${line}</span>`).join("");
  d.tip.hidden = false;
  const right = columns[column] / columns.at(-1) > 0.6, low = rows[row] / rows.at(-1) > 0.6;
  const x = (right ? columns[column] : columns[column + 1]) / columns.at(-1);
  const y = (low ? rows[row + 1] : rows[row]) / rows.at(-1);
  d.tip.style.left = `${100 * x}%`;
  d.tip.style.top = `${100 * y}%`;
  d.tip.style.transform = `translate(${right ? "calc(-100% - 6px)" : "6px"}, ${low ? "-100%" : "0"})`;
}

element.addEventListener("pointermove", (event) => {
  const d = event.target.closest(".bit-map svg") && drawing();
  if (d) choose(d, tileAt(d, event));
});
element.addEventListener("pointerout", (event) => {
  const d = event.pointerType === "mouse" && event.target.closest("svg") && drawing();
  if (d && !d.svg.contains(event.relatedTarget)) d.tip.hidden = true;
});
element.addEventListener("click", (event) => {
  const d = event.target.closest(".bit-map svg") && drawing();
  if (!d) return;
  const tile = tileAt(d, event);
  choose(d, tile);
  trigger("select", { index: tile, value: tile });
});
element.addEventListener("keydown", (event) => {
  const d = event.target.closest(".bit-map svg") && drawing();
  if (!d) return;
  const columns = d.tiles.columns.length - 1, count = columns * (d.tiles.rows.length - 1);
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns };
  const tile = Number(d.svg.dataset.tile ?? 0);
  if (event.key in steps) choose(d, Math.min(Math.max(tile + steps[event.key], 0), count - 1));
  else if (event.key === "Enter") trigger("select", { index: tile, value: tile });
  else return;
  event.preventDefault();
});
