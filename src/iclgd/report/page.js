"use strict";
// Draws the figures from the JSON in #data, saves their data and specifications, and sorts the table of runs.
const data = JSON.parse(document.getElementById("data").textContent);
const SCALE = 2.3; // from points of a printed page to pixels of a screen
const WIDE = 300; // points; a wider figure takes both columns

const chosen = (box) => data.figures[box.querySelector("select")?.value ?? box.dataset.figure];
const rows = (columns) => (Object.values(columns)[0] ?? []).map((_, at) =>
  Object.fromEntries(Object.entries(columns).map(([name, values]) => [name, values[at]])));
const whole = ({ spec, columns }) => ({ ...spec, config: data.theme, datasets: { rows: rows(columns) } });

async function draw(box) {
  const figure = chosen(box);
  box.querySelectorAll("[data-caption]").forEach((one) => { one.hidden = data.figures[one.dataset.caption] !== figure; });
  // The interpreter of expressions (ast) needs no eval, which the page's policy forbids.
  const spec = whole(figure);
  spec.config = { ...spec.config, background: "transparent" };
  const plot = box.querySelector(".plot");
  await vegaEmbed(plot, spec, { ast: true, renderer: "svg", mode: "vega-lite", actions: false });
  const svg = plot.querySelector("svg.marks");
  const width = svg.viewBox.baseVal.width;
  svg.style.width = `${SCALE * width}px`;
  for (const one of [box, svg]) one.classList.toggle("wide", width > WIDE);
}

function save(box, ending) {
  const figure = chosen(box);
  const cell = (value) => /[",\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value ?? "";
  const lines = [Object.keys(figure.columns), ...rows(figure.columns).map(Object.values)];
  const text = ending === "csv" ? lines.map((line) => line.map(cell).join(",") + "\n").join("") : JSON.stringify(whole(figure), null, 1);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/plain" }));
  link.download = `${figure.name}.${ending}`;
  link.click();
}

const boxes = [...document.querySelectorAll(".figure")];
for (const box of boxes) {
  box.querySelector("select")?.addEventListener("change", () => draw(box));
  box.querySelectorAll(".get button").forEach((button) => button.addEventListener("click", () => save(box, button.value)));
}
// All are drawn at once, in sight or not, so that a printed page has them.
const last = Promise.all(boxes.map(draw)).then(() => { document.documentElement.dataset.drawn = "true"; });

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
