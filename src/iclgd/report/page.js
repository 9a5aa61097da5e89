"use strict";
// Draws the figures from the JSON in #data, one after the other, and sorts the table of runs.
const data = JSON.parse(document.getElementById("data").textContent);
const dark = matchMedia("screen and (prefers-color-scheme: dark)");
const SCALE = 1.85; // from points of a printed page to pixels of a screen

function rows(columns) {
  const names = Object.keys(columns);
  const values = names.map((name) => columns[name].texts ? columns[name].at.map((i) => columns[name].texts[i]) : columns[name]);
  return (values[0] ?? []).map((_, i) => Object.fromEntries(names.map((name, at) => [name, values[at][i]])));
}

async function draw(box) {
  const at = box.querySelector("select")?.value ?? box.dataset.figure;
  const { spec, columns } = data.figures[at];
  const plot = box.querySelector(".plot");
  box.querySelectorAll("[data-caption]").forEach((one) => { one.hidden = one.dataset.caption !== at; });
  const config = { ...(dark.matches ? data.dark : data.light), background: "transparent" };
  const actions = { export: { svg: true, png: true }, source: false, compiled: false, editor: false };
  // The interpreter of expressions (ast) needs no eval, which the page's policy forbids.
  const options = { ast: true, renderer: "svg", mode: "vega-lite", actions, tooltip: { theme: dark.matches ? "dark" : "light" } };
  const whole = { ...spec, config, datasets: { rows: rows(columns) } };
  await vegaEmbed(plot, whole, { ...options, downloadFileName: box.dataset.name });
  const svg = plot.querySelector("svg.marks");
  const width = svg.viewBox.baseVal.width;
  svg.style.cssText = `width: ${SCALE * width}px; height: auto; max-width: 100%; min-width: ${Math.min(width, 560)}px`;
}

const boxes = [...document.querySelectorAll(".figure")];
// All are drawn, in sight or not, so that a printed page has them; in turn, so that the page stays usable meanwhile.
let last = Promise.resolve();
const show = (box) => { last = last.then(() => draw(box)).then(() => new Promise((next) => setTimeout(next))); };
boxes.forEach(show);
boxes.forEach((box) => box.querySelector("select")?.addEventListener("change", () => show(box)));
dark.addEventListener("change", () => boxes.forEach(show));
last.then(() => { document.documentElement.dataset.drawn = "true"; });

const table = document.querySelector("#runs table");
const value = (row, at) => row.cells[at].textContent;
const compare = (a, b) => {
  const [x, y] = [a, b].map((text) => Number.parseFloat(text));
  const numbers = Number.isFinite(x) - Number.isFinite(y);
  return numbers ? -numbers : Number.isFinite(x) && x !== y ? x - y : a.localeCompare(b, "en");
};
[...table.tHead.rows[0].cells].forEach((head, at) => head.firstElementChild.addEventListener("click", () => {
  const down = head.ariaSort === "ascending" ? -1 : 1;
  const body = table.tBodies[0];
  body.append(...[...body.rows].sort((a, b) => down * compare(value(a, at), value(b, at))));
  for (const other of table.tHead.rows[0].cells) other.ariaSort = "none";
  head.ariaSort = down > 0 ? "ascending" : "descending";
}));
document.documentElement.dataset.ready = "true";
