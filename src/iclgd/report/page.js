"use strict";
// Draws the figures and the prompt viewer from the JSON in #data. Text from outside only ever becomes text.

const DATA = JSON.parse(document.getElementById("data").textContent);
const unique = (values) => [...new Set(values)];
const labelOf = (score) => DATA.labels[score] ?? score;
const byId = (id) => document.getElementById(id);

// Control and direction characters are shown by their code, so that no text can pose as another.
const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]/g;
const visible = (text) =>
  String(text).replace(HIDDEN, (c) => `⟨U+${c.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`);
// Plotly reads some markup in its texts; this leaves none to read.
const plain = (text) => visible(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

function element(tag, text, className) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = visible(text);
  if (className) made.className = className;
  return made;
}

function choice(parent, name, options, onChange) {
  const label = element("label", name);
  const select = document.createElement("select");
  for (const [value, text] of options) {
    const option = element("option", text);
    option.value = value;
    select.append(option);
  }
  select.addEventListener("change", onChange);
  label.append(select);
  parent.append(label);
  label.hidden = options.length < 2;
  return select;
}

function theme() {
  const css = getComputedStyle(document.documentElement);
  const color = (name) => css.getPropertyValue(name).trim();
  return { ink: color("--ink"), soft: color("--soft"), line: color("--line"), sans: color("--sans") };
}

function layout(x, y, more = {}) {
  const { ink, line, sans } = theme();
  const axis = { gridcolor: line, zerolinecolor: ink, zerolinewidth: 1, linecolor: line, automargin: true };
  const { xaxis = {}, yaxis = {}, ...others } = more;
  return {
    height: 400, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: ink, family: sans, size: 13 },
    margin: { t: 24, r: 12, b: 48, l: 56 }, hovermode: "closest", showlegend: true,
    legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 }, modebar: { bgcolor: "rgba(0,0,0,0)", color: line, activecolor: ink },
    xaxis: { ...axis, zeroline: false, title: { text: plain(x) }, ...xaxis }, yaxis: { ...axis, title: { text: plain(y) }, ...yaxis },
    ...others,
  };
}

const line = (variant) => {
  const [named, symbol, dash] = DATA.variants[variant];
  const color = named === "#000000" ? theme().ink : named;
  return { line: { color, dash, width: 2 }, marker: { color, symbol, size: 7 } };
};
const nameOf = (g) => plain([g.variant, g.setting].filter(Boolean).join(" · "));
const place = (g) => JSON.stringify([g.task, g.model, g.weights]);
const modelOf = (g) => JSON.stringify([g.model, g.weights]);
const placeName = (key) => {
  const [task, model, weights] = JSON.parse(key);
  return weights === "pretrained" ? `${task} · ${model}` : `${task} · ${model} · ${weights}`;
};
const places = (groups) => unique(groups.map(place)).map((key) => [key, placeName(key)]);
const settings = (groups) => {
  const found = unique(groups.map((g) => g.setting));
  return found.length > 1 ? [["all", "all, later ones stronger"], ...found.map((s) => [s, s || "none"])] : [["all", "all"]];
};
const scoresOf = (groups, part) => unique(groups.flatMap((g) => Object.keys(g[part]))).map((s) => [s, labelOf(s)]);
const bars = (points, at) => ({
  type: "data", symmetric: false, thickness: 1, width: 3,
  array: points.map((p) => (p[3] === null ? 0 : p[3] - p[0])), arrayminus: points.map((p) => (p[2] === null ? 0 : p[0] - p[2])),
  visible: at !== undefined,
});

// Each figure: what it is for, which groups it can show, its choices and how it is drawn.
const FIGURES = [
  {
    title: "Scores by layer",
    note: "Bars: standard deviation over seeds, or for one seed 1.96 standard errors over queries. Dotted: published.",
    groups: DATA.groups.filter((g) => Object.keys(g.layers).length && g.rate !== null),
    choices: (groups) => [["score", scoresOf(groups, "layers")], ["task and model", places(groups)], ["setting", settings(groups)]],
    draw(groups, [score, where, setting]) {
      const shown = groups.filter((g) => place(g) === where && g.layers[score] && ["all", g.setting].includes(setting));
      const faint = (g) => {
        const alike = shown.filter((other) => other.variant === g.variant);
        return alike.length > 1 ? 0.25 + (0.75 * alike.indexOf(g)) / (alike.length - 1) : 1;
      };
      const traces = shown.map((g) => ({
        x: g.layers[score][0].map((_, i) => i), y: g.layers[score][0], name: nameOf(g), mode: "lines+markers", ...line(g.variant), opacity: faint(g),
        error_y: { type: "data", array: g.layers[score][1], thickness: 1, width: 2 },
        hovertemplate: "layer %{x}: %{y:.3f}",
      }));
      for (const g of shown.filter((g) => g.published[score])) {
        const look = line(g.variant);
        traces.push({
          y: g.published[score], name: `${nameOf(g)}, published`, mode: "lines", line: { ...look.line, dash: "dot", width: 1.5 },
          opacity: 0.75, hovertemplate: "published, layer %{x}: %{y:.3f}",
        });
      }
      return [traces, layout("layer", labelOf(score), { height: 380 + 7 * traces.length })];
    },
  },
  {
    title: "Along a setting",
    note: "Mean and 95 % interval. A setting without a point diverged or is undefined.",
    groups: DATA.axes.length ? DATA.groups : [],
    choices: (groups) => [["setting", DATA.axes.map((a) => [a, a])], ["score", scoresOf(groups, "scores")], ["task and model", places(groups)]],
    draw(groups, [axis, score, where]) {
      const lines = new Map();
      for (const g of groups.filter((g) => place(g) === where && g.scores[score])) {
        const short = axis.slice(axis.lastIndexOf(".") + 1);
        const others = g.setting.split(" · ").filter((part) => !part.startsWith(`${short} `)).join(" · ");
        const key = JSON.stringify([g.variant, others]);
        lines.set(key, [...(lines.get(key) ?? []), g]);
      }
      const traces = [...lines].filter(([, members]) => members.length > 1).map(([key, members]) => {
        const [variant, others] = JSON.parse(key);
        members.sort((a, b) => a.numbers[axis] - b.numbers[axis]);
        const points = members.map((g) => g.scores[score]);
        return {
          x: members.map((g) => g.numbers[axis]), y: points.map((p) => p[0]), name: plain([variant, others].filter(Boolean).join(" · ")),
          mode: "lines+markers", ...line(variant), error_y: bars(points, 0), text: members.map((g) => (g.diverged ? "diverged" : "")),
          hovertemplate: "%{x}: %{y:.3f} %{text}",
        };
      });
      const values = unique(groups.map((g) => g.numbers[axis]).filter((v) => v > 0));
      const log = values.length > 1 && Math.max(...values) / Math.min(...values) >= 30;
      return [traces, layout(axis, labelOf(score), { xaxis: log ? { type: "log", dtick: 1, exponentformat: "power" } : {} })];
    },
  },
  {
    title: "Scores by task",
    note: "Mean and 95 % interval: over seeds where there are several, else over queries.",
    groups: DATA.controls ? [] : DATA.groups,
    choices: (groups) => [["score", scoresOf(groups, "scores")], ["model", unique(groups.map(modelOf)).map((key) => [key, JSON.parse(key).join(" · ")])]],
    draw: (groups, [score, model]) => ladder(groups.filter((g) => modelOf(g) === model), score, []),
  },
  {
    title: "Between floor and ceiling",
    note: "Mean and 95 % interval: over seeds where there are several, else over queries. Each variant at the rate where its SimAOU is highest, and at the published rate. Dotted: floor (no update, random directions); dashed: ceiling (trained towards ICL's outputs); dash-dotted: ICL in another order.",
    groups: DATA.groups.filter((g) => DATA.controls && g.rate !== null),
    choices: (groups) => [["score", scoresOf(groups, "scores")], ["task and model", places(groups)]],
    draw: (groups, [score, where]) => ladder(groups.filter((g) => place(g) === where), score, bounds(where, score)),
  },
  {
    title: "Gradient norms",
    note: "By layer and demonstration, logarithmic colour; the first draw.",
    groups: DATA.groups.filter((g) => g.gradients),
    choices: (groups) => [["setting", groups.map((g, i) => [String(i), `${placeName(place(g))} · ${[g.variant, g.setting].filter(Boolean).join(" · ")}`])]],
    draw(groups, [at]) {
      const grid = groups[Number(at)].gradients;
      const z = grid.map((row) => row.map((v) => (v > 0 ? Math.log10(v) : null)));
      return [[{ type: "heatmap", z, customdata: grid, colorscale: "Cividis", colorbar: { title: { text: "log₁₀ norm" } }, hovertemplate: "layer %{y}, demonstration %{x}: %{customdata:.3g}<extra></extra>" }], layout("demonstration", "layer")];
    },
  },
  {
    title: "Scores by head",
    note: "The first draw.",
    groups: DATA.groups.filter((g) => Object.keys(g.heads).length),
    choices: (groups) => [["score", scoresOf(groups, "heads")], ["setting", groups.map((g, i) => [String(i), `${placeName(place(g))} · ${nameOf(g)}`])]],
    draw(groups, [score, at]) {
      const z = groups[Number(at)].heads[score] ?? [];
      return [[{ type: "heatmap", z, colorscale: "RdBu", reversescale: true, zmid: 0, hovertemplate: "layer %{y}, head %{x}: %{z:.3f}<extra></extra>" }], layout("head", "layer")];
    },
  },
  {
    title: "Along finetuning",
    note: "Mean over queries and layers after each measured step; the first draw.",
    groups: DATA.groups.filter((g) => Object.keys(g.trajectory).length),
    choices: (groups) => [["score", scoresOf(groups, "trajectory")], ["task and model", places(groups)]],
    draw(groups, [score, where]) {
      const shown = groups.filter((g) => place(g) === where && g.trajectory[score]);
      const traces = shown.map((g) => ({ x: g.trajectory[score][0], y: g.trajectory[score][1], name: nameOf(g), mode: "lines+markers", ...line(g.variant) }));
      return [traces, layout("step", labelOf(score))];
    },
  },
];

function ladder(groups, score, shapes) {
  const shown = groups.filter((g) => g.scores[score] && g.scores[score][0] !== null);
  const several = unique(shown.map((g) => g.task)).length > 1;
  const traces = shown.map((g) => {
    const { marker } = line(g.variant);
    const point = g.scores[score];
    const name = [nameOf(g), plain(g.rate ?? ""), several ? plain(g.task) : ""].filter(Boolean).join(" · ");
    return {
      y: [name], x: [point[0]], name, mode: "markers",
      marker: { ...marker, size: 10 }, error_x: { ...bars([point], 0), color: marker.color }, hovertemplate: "%{y}: %{x:.3f}<extra></extra>",
    };
  });
  const height = Math.max(150, 70 + 28 * shown.length);
  return [traces, layout(labelOf(score), "", { height, shapes, yaxis: { autorange: "reversed" }, xaxis: { zeroline: true }, margin: { t: 4, r: 12, b: 48, l: 56 }, showlegend: false })];
}

function bounds(where, score) {
  const dashes = ["dot", "dash", "dashdot"]; // floor, ceiling, noise ceiling
  const found = DATA.bounds.find((entry) => place(entry) === where)?.scores[score] ?? [];
  return found
    .map((x, i) => ({ type: "line", x0: x, x1: x, yref: "paper", y0: 0, y1: 1, line: { dash: dashes[i], width: 1.5, color: theme().soft } }))
    .filter((shape) => shape.x0 !== null);
}

function addFigure(figure) {
  if (!figure.groups.length) return;
  const box = element("div", undefined, "figure");
  const controls = element("div", undefined, "controls");
  const plot = element("div", undefined, "plot");
  const selects = [];
  const draw = () => {
    const [traces, arranged] = figure.draw(figure.groups, selects.map((select) => select.value));
    Plotly.react(plot, traces, arranged, { responsive: true, displaylogo: false, displayModeBar: matchMedia("(hover: hover)").matches, modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]] });
  };
  for (const [name, options] of figure.choices(figure.groups)) selects.push(choice(controls, name, options, draw));
  box.append(element("h3", figure.title), controls, plot, element("p", figure.note, "note"));
  byId("plots").append(box);
  draw();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
}

const COLUMNS = [
  ["run", (r) => r.run], ["task", (r) => r.task], ["model", (r) => r.model], ["weights", (r) => r.weights], ["variant", (r) => r.variant],
  ["lr", (r) => r.lr], ["shots", (r) => r.shots], ["seed", (r) => r.seed],
  ...["sim_aou", "sim_am_delta"].filter((s) => s in DATA.labels).map((s) => [labelOf(s), (r) => (r.diverged ? "diverged" : r.scores[s]?.toFixed(3) ?? "–"), true]),
  ["icl", (r) => percent(r.scores["accuracy/icl"]), true], ["ft", (r) => percent(r.scores["accuracy/ft"]), true],
  ["revision", (r) => (r.revision ?? "unknown").slice(0, 8) + (r.dirty ? "+" : "")],
];
const percent = (value) => (value === null || value === undefined ? "–" : `${(100 * value).toFixed(1)}%`);

function addRuns() {
  const head = element("tr");
  for (const [name, , number] of COLUMNS) head.append(element("th", name, number ? "number" : ""));
  const top = element("thead");
  top.append(head);
  const body = element("tbody");
  DATA.runs.forEach((run, i) => {
    const row = element("tr");
    COLUMNS.forEach(([, value, number], at) => {
      const cell = element("td", at ? value(run) : undefined, number ? "number" : "");
      if (!at) {
        const button = element("button", value(run));
        button.type = "button";
        cell.append(button);
      }
      row.append(cell);
    });
    row.addEventListener("click", () => show(i));
    body.append(row);
  });
  byId("run-table").append(top, body);
}

let runChoice, kindChoice;

function show(i) {
  const run = DATA.runs[i];
  [...byId("run-table").tBodies[0].rows].forEach((row, at) => row.setAttribute("aria-selected", String(at === i)));
  byId("run-detail").hidden = false;
  byId("run-name").textContent = visible(run.run);
  byId("run-config").textContent = visible(run.config);
  byId("run-environment").textContent = visible(run.environment);
  runChoice.value = String(i);
  showPrompts();
}

function showPrompts() {
  const run = DATA.runs[Number(runChoice.value)];
  const prompts = DATA.prompts[run.prompts];
  const list = byId("prompt-list");
  list.replaceChildren();
  if (!prompts) return void list.append(element("p", "This run's prompts.json cannot be read.", "note"));
  const kind = kindChoice.value;
  prompts[kind].forEach(([text, label, tokens], i) => {
    const row = element("div", undefined, "prompt");
    const marks = element("div", undefined, "marks");
    marks.append(element("span", prompts.labels[label] ?? `option ${label}`, "tag"));
    if (kind === "queries") for (const setting of ["zsl", "icl", "ft"]) addMark(marks, run, prompts, setting, i, label);
    marks.append(element("span", `${tokens} tokens`, "tag"));
    row.append(element("div", i, "at"), element("div", text, "text"), marks);
    list.append(row);
  });
  if (kind === "queries" && prompts.left_out) list.append(element("p", `${prompts.left_out} more queries are in prompts.json.`, "note"));
}

function addMark(marks, run, prompts, setting, i, label) {
  const right = run.right[setting]?.[i];
  const predicted = run.predicted[setting]?.[i];
  if (right === undefined && predicted === undefined) return;
  const good = right === undefined ? predicted === label : right === "1";
  const said = predicted === undefined ? (right === "?" ? "no prediction" : good ? "right" : "wrong") : prompts.labels[predicted] ?? `option ${predicted}`;
  marks.append(element("span", `${setting}: ${said} ${good ? "✓" : "✗"}`, `tag ${good ? "right" : "wrong"}`));
}

FIGURES.forEach(addFigure);
addRuns();
const runName = (r) => [r.run, r.task, r.variant, `lr ${r.lr}`, `seed ${r.seed}`].join(" · ");
runChoice = choice(byId("prompt-controls"), "run", DATA.runs.map((r, i) => [String(i), runName(r)]), () => show(Number(runChoice.value)));
kindChoice = choice(byId("prompt-controls"), "show", [["queries", "queries"], ["demonstrations", "demonstrations"]], showPrompts);
if (DATA.runs.length) show(0);
document.documentElement.dataset.ready = "true";
