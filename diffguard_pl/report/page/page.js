"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const by = (id) => document.getElementById(id);

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function shown(value) {
  if (value === null || value === undefined) return "–";
  return Math.abs(value) < 100 ? value.toFixed(3).replace(/^-(0\.000)$/, "$1") : value.toFixed(1);
}

/* Theme: the system's, until the button says otherwise. */

const isDark = () => {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
};

function remembered(theme) {
  try {
    if (theme) localStorage.setItem("diffguard-theme", theme);
    return localStorage.getItem("diffguard-theme");
  } catch {
    return null; // a browser may forbid it to files
  }
}

function startTheme() {
  const before = remembered();
  if (before) document.documentElement.dataset.theme = before;
  by("theme").addEventListener("click", () => {
    document.documentElement.dataset.theme = remembered(isDark() ? "light" : "dark") ?? (isDark() ? "light" : "dark");
    drawPlots();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawPlots);
}

function colour(name) {
  const probe = make("i");
  probe.style.color = `var(--${name})`;
  document.body.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

/* Tables */

function startTable(table) {
  const body = table.tBodies[0];
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    heading.querySelector("button").addEventListener("click", () => {
      const number = heading.dataset.kind === "number";
      const before = heading.getAttribute("aria-sort");
      const order = before === "none" ? (number ? "descending" : "ascending") : before === "ascending" ? "descending" : "ascending";
      headings.forEach((other) => other.setAttribute("aria-sort", "none"));
      heading.setAttribute("aria-sort", order);
      table.classList.remove("grouped");
      const value = (row) => (number ? parseFloat(row.cells[column].dataset.value) : row.cells[column].textContent.trim());
      const sign = order === "ascending" ? 1 : -1;
      const compare = (a, b) => {
        if (!number) return sign * a.localeCompare(b, undefined, { numeric: true });
        return isNaN(a) || isNaN(b) ? isNaN(a) - isNaN(b) : sign * (a - b); // unknown ones last, either way
      };
      body.append(...[...body.rows].sort((a, b) => compare(value(a), value(b))));
    });
  });
}

/* Plots */

function layout(x, y, more = {}) {
  const axis = { gridcolor: colour("grid"), linecolor: colour("line"), zeroline: false, automargin: true };
  return {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: "system-ui, sans-serif", size: 12.5, color: colour("soft") },
    margin: { l: 52, r: 10, t: 34, b: 44 },
    hovermode: "closest",
    hoverlabel: { bgcolor: colour("raised"), bordercolor: colour("line"), font: { color: colour("ink") } },
    legend: { orientation: "h", x: 0, y: 1.01, yanchor: "bottom", font: { color: colour("ink") } },
    ...more,
    xaxis: { ...axis, title: { text: x, font: { size: 12.5 }, standoff: 10 }, ...more.xaxis },
    yaxis: { ...axis, title: { text: y, font: { size: 12.5 }, standoff: 8 }, ...more.yaxis },
  };
}

function plot(id, traces, description) {
  const place = by(id);
  if (place) Plotly.react(place, traces, description, { responsive: true, displayModeBar: false });
}

/* Names are text: Plotly would read tags in them. */
const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

function shareAxis() {
  const logarithmic = by("plot-axis").value === "log";
  return logarithmic
    ? { type: "log", range: [-3.3, 0.01], tickvals: [0.001, 0.01, 0.1, 1], ticktext: ["0.1 %", "1 %", "10 %", "100 %"] }
    : { type: "linear", range: [-0.02, 1.02], tickformat: ".0%" };
}

/* There are fewer colours than some runs have sets: those that share one differ in their dashes. */
const dashOf = (d) => ["solid", "dash", "dashdot", "longdash"][Math.floor(d / data.shades) % 4];

const whole = { range: [-0.02, 1.02], tickformat: ".0%" };
const diagonal = () => {
  const x = [0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1];
  return { x, y: x, mode: "lines", line: { color: colour("line"), width: 1 }, hoverinfo: "skip", showlegend: false };
};

function curve(points, name, line, more = {}) {
  return { x: points.x, y: points.y, name: plain(name), mode: "lines", line, hovertemplate: "%{x:.1%} accepted at %{y:.1%}", ...more };
}

/* Only a few sets fit over each other in one histogram, so each is an outline over a light fill. */
function outline(edges, shares, name, colourOf, dash = "solid") {
  const x = [edges[0]], y = [0];
  shares.forEach((share, i) => {
    x.push(edges[i], edges[i + 1]);
    y.push(share, share);
  });
  x.push(edges[edges.length - 1]);
  y.push(0);
  return { x, y, name: plain(name), mode: "lines", fill: "tozeroy", fillcolor: colourOf + "33", line: { color: colourOf, width: 1.4, dash }, hovertemplate: "%{x:.4g}: %{y:.1%}" };
}

function drawRun() {
  const k = Number(by("plot-score").value);
  const score = data.scores[k];
  const sets = data.datasets.map((name, d) => ({ name, d, colour: data.colours[d] }));
  const others = sets.slice(1);

  const withMsp = data.msp !== null && data.msp !== k;
  by("roc-note").textContent = withMsp ? "dotted: MSP" : "";
  const curves = others.map(({ name, d, colour }) => curve(data.roc[score][d - 1], name, { color: colour, width: 2, dash: dashOf(d) }));
  const dotted = others.map(({ name, d, colour }) =>
    curve(data.roc.msp?.[d - 1] ?? { x: [], y: [] }, `${name}, MSP`, { color: colour, width: 1.2, dash: "dot" }, { showlegend: false }));
  const accepted = `${data.datasets[0]} accepted`;
  plot("plot-roc", [diagonal(), ...curves, ...(withMsp ? dotted : [])],
    layout("out-of-distribution accepted", plain(accepted), { xaxis: shareAxis(), yaxis: whole }));

  const { edges, shares } = data.histogram[score];
  const cut = data.thresholds[k];
  const line = { type: "line", x0: cut, x1: cut, y0: 0, y1: 1, yref: "paper", line: { color: colour("ink"), width: 1, dash: "dash" } };
  plot("plot-histogram", sets.map((set) => outline(edges, shares[set.d], set.name, set.colour, dashOf(set.d))),
    layout(`${plain(score)} (higher = more in-distribution)`, "share of the set", { shapes: cut === null ? [] : [line], yaxis: by("plot-axis").value === "log" ? { type: "log", range: [-4, 0.02], tickvals: [0.0001, 0.001, 0.01, 0.1, 1], ticktext: ["0.01 %", "0.1 %", "1 %", "10 %", "100 %"] } : { tickformat: ".0%", rangemode: "tozero" } }));

  by("figure-scatter").hidden = !withMsp;
  if (withMsp) {
    const points = sets.map(({ name, d, colour }) => ({
      x: data.scatter[d].values[data.msp], y: data.scatter[d].values[k], text: data.scatter[d].index, name: plain(name), mode: "markers", type: "scatter",
      marker: { color: colour, size: 5, opacity: 0.55 }, hovertemplate: "%{text}<br>MSP %{x:.4f}<br>%{y:.4f}",
    }));
    plot("plot-scatter", points, layout("MSP", plain(score)));
  }
  if (data.stops) {
    const bars = sets.map(({ name, d, colour }) => ({ type: "bar", x: data.stops.steps, y: data.stops.shares[d], name: plain(name), marker: { color: colour }, hovertemplate: "step %{x}: %{y:.1%}" }));
    plot("plot-stops", bars, layout("step", "share of the set", { barmode: "group", yaxis: { tickformat: ".0%" } }));
  }
  if (data.cascade) drawCascade(others);
  if (data.seconds) {
    const { edges: ends, shares: of } = data.seconds;
    plot("plot-seconds", [{ ...outline(ends, of, "", "#2b6cb0"), showlegend: false }], layout("seconds", "share of images", { yaxis: { tickformat: ".0%", rangemode: "tozero" } }));
  }
}

/* A line over its interval for each set, against the share of images that is diffused. */
function drawCascade(others) {
  const { sent, own, budgets, figures } = data.cascade;
  for (const name of ["auroc", "fpr95"]) {
    const traces = others.flatMap(({ name: set, d, colour: of }) => {
      const points = figures[name][d - 1];
      const at = (end) => points.map((point) => point[end]);
      const bound = { x: sent, mode: "lines", line: { width: 0 }, hoverinfo: "skip", showlegend: false };
      return [
        { ...bound, y: at(1) },
        { ...bound, y: at(2), fill: "tonexty", fillcolor: of + "22" },
        { x: sent, y: at(0), name: plain(set), mode: "lines+markers", text: budgets, line: { color: of, width: 2, dash: dashOf(d) }, marker: { size: 5 }, hovertemplate: "budget %{text}: %{x:.1%} diffused, %{y:.2%}" },
      ];
    });
    const line = { type: "line", x0: sent[own], x1: sent[own], y0: 0, y1: 1, yref: "paper", line: { color: colour("ink"), width: 1, dash: "dash" } };
    plot(`plot-cascade-${name}`, traces, layout("share of all images that is diffused", "", { shapes: [line], xaxis: whole, yaxis: { tickformat: ".1~%" } }));
  }
}

function drawComparison() {
  const line = data.lines[Number(by("plot-line").value)];
  const curves = line.curves.map((points, i) => curve(points, `${data.runs[i].letter}  ${line.score[i]}`, { color: data.runs[i].colour, width: 2, dash: dashOf(i) }));
  plot("plot-roc", [diagonal(), ...curves], layout(`${plain(line.dataset)} accepted`, "in-distribution accepted", { xaxis: shareAxis(), yaxis: whole }));

  const [figure, less] = by("plot-figure").value.split("-").reverse();
  const first = new Map(data.lines.map((one) => [`${one.group}: ${one.dataset}`, one]).reverse()); // the primary's line comes first
  const names = [...first.keys()];
  const runs = data.runs.slice(less ? 1 : 0);
  const apart = Math.min(0.16, 0.76 / runs.length); // rows of one set stay clear of those of the next
  const traces = runs.map((run, i) => {
    const found = names.map((name) => (less ? first.get(name).less[figure][i] : first.get(name).figures[figure][i]));
    const x = found.map((one) => one[0]);
    return {
      x, y: names.map((_, n) => n - (i - (runs.length - 1) / 2) * apart), name: plain(run.letter), mode: "markers", type: "scatter", marker: { color: run.colour, size: 8, symbol: ["circle", "diamond", "square", "triangle-up"][Math.floor(data.runs.indexOf(run) / data.shades) % 4] },
      error_x: { type: "data", symmetric: false, array: found.map((one) => one[2] - one[0]), arrayminus: found.map((one) => one[0] - one[1]), color: run.colour, thickness: 1.6, width: 0 },
      text: found.map((one) => one.map((value) => (value === null ? "–" : (100 * value).toFixed(2)))).map(([at, low, high]) => `${at} [${low}, ${high}]`), hovertemplate: "%{text}",
    };
  });
  const zero = { type: "line", x0: 0, x1: 0, y0: 0, y1: 1, yref: "paper", line: { color: colour("soft"), width: 1 } };
  const height = Math.max(by("plot-roc").clientHeight, 100 + names.length * Math.max(26, runs.length * 11));
  by("plot-intervals").style.height = `${height}px`;
  plot("plot-intervals", traces, layout("", "", { height, shapes: less ? [zero] : [], xaxis: { tickformat: less ? "+.1%" : ".1%" }, yaxis: { tickvals: names.map((_, n) => n), ticktext: names.map(plain), range: [-0.6, names.length - 0.4] } }));
}

function drawPlots() {
  if (data.runs) drawComparison();
  else drawRun();
}

/* Gallery */

const PAGE = 36;
let listed = [];
let opened = -1;

const scoreNow = () => Number(by("gallery-score").value);
const isMissed = (card, k) => card.confusion[k] !== null && card.confusion[k] > 0;

function verdict(card, k) {
  if (card.confusion[k] === null) return make("span", { textContent: "no score" });
  const missed = isMissed(card, k);
  const isInd = card.dataset === data.datasets[0];
  const accepted = isInd !== missed;
  return make("span", { className: missed ? "missed" : "right", textContent: `${missed ? "missed" : "right"}: ${accepted ? "accepted" : "rejected"}` });
}

function description(card) {
  const taken = `taken for ${card.prediction ?? "–"}`;
  return card.label === null || card.label === undefined ? taken : card.label === card.prediction ? `${card.label}, ${taken}` : `${card.label}, but ${taken}`;
}

function picture(card, name) {
  return make("img", { src: card.pictures[name], alt: name, className: card.small ? "small" : "", decoding: "async" });
}

function cardOf(card, place) {
  const k = scoreNow();
  const set = make("i", { className: "dot" });
  set.style.background = data.colours[data.datasets.indexOf(card.dataset)];
  const strip = make("div", { className: "strip" }, ...Object.keys(card.pictures).map((name) => make("div", {}, picture(card, name), make("span", { textContent: name }))));
  const button = make("button", { type: "button", className: "card" },
    make("div", { className: "top" }, make("span", {}, set, `${card.dataset} ${card.index}`), verdict(card, k)),
    strip,
    make("div", { className: "bottom" }, make("span", { textContent: description(card) }), make("span", { className: "value", textContent: `${data.scores[k]} ${shown(card.values[k])}` })));
  button.setAttribute("aria-label", `${card.dataset} ${card.index}, ${description(card)}, ${data.scores[k]} ${shown(card.values[k])}: enlarge`);
  button.dataset.place = place;
  button.addEventListener("click", () => open(place));
  return button;
}

function list() {
  const k = scoreNow();
  const dataset = by("filter-dataset").value;
  const name = by("filter-class").value;
  const wanted = by("filter-verdict").value;
  const order = by("gallery-order").value;
  listed = data.cards.filter((card) =>
    (!dataset || card.dataset === data.datasets[Number(dataset)]) &&
    (!name || card.prediction === data.classes[Number(name)]) &&
    (!wanted || (card.confusion[k] !== null && isMissed(card, k) === (wanted === "missed"))));
  const of = order === "confusing" ? (card) => -(card.confusion[k] ?? -2) : order === "low" ? (card) => card.values[k] ?? Infinity : (card) => -(card.values[k] ?? -Infinity);
  listed.sort((a, b) => of(a) - of(b) || a.index - b.index);
  const missed = listed.filter((card) => isMissed(card, k)).length;
  by("gallery-count").textContent = listed.length ? `${listed.length} images, ${missed} of them missed` : "No image is like that.";
  by("cards").replaceChildren();
  more();
}

function more() {
  const cards = by("cards");
  const from = cards.children.length;
  cards.append(...listed.slice(from, from + PAGE).map((card, i) => cardOf(card, from + i)));
  by("more").hidden = cards.children.length >= listed.length;
}

function fact(name, value) {
  return make("div", { className: name === "path" ? "wide" : "" }, make("dt", { textContent: name }), make("dd", { textContent: value, className: name === "path" ? "code" : "" }));
}

function open(place) {
  opened = place;
  const card = listed[place];
  by("viewer-title").textContent = `${card.dataset} ${card.index}: ${description(card)}`;
  by("viewer-place").textContent = `${place + 1} of ${listed.length}`;
  const held = document.activeElement;
  by("previous").disabled = place === 0;
  by("next").disabled = place === listed.length - 1;
  by("viewer-panels").replaceChildren(...Object.keys(card.pictures).map((name) => make("div", {}, picture(card, name), make("span", { textContent: name }))));
  const facts = { label: card.label, prediction: card.prediction, "reconstructed as": card.reconstructed_as, "stopped at step": card.stop_index, seconds: card.seconds === null ? null : shown(card.seconds), path: card.path };
  by("viewer-facts").replaceChildren(...Object.entries(facts).filter(([, value]) => value !== null && value !== undefined && value !== "").map(([name, value]) => fact(name, value)));
  const head = make("thead", {}, make("tr", {}, ...["Score", "Value", "Threshold", "Verdict"].map((text, i) => make("th", { textContent: text, scope: "col", className: i === 1 || i === 2 ? "figure" : "" }))));
  const rows = data.scores.map((score, k) => make("tr", {},
    make("td", { textContent: score }), make("td", { textContent: shown(card.values[k]), className: "figure" }),
    make("td", { textContent: shown(data.thresholds[k]), className: "figure" }), make("td", {}, verdict(card, k))));
  by("viewer-scores").replaceChildren(head, make("tbody", {}, ...rows));
  if (!by("viewer").open) by("viewer").showModal();
  if (held?.disabled) ["previous", "next", "close"].map(by).find((button) => !button.disabled).focus(); // else keys lead nowhere
}

function step(by_) {
  const place = opened + by_;
  if (place < 0 || place >= listed.length) return;
  while (by("cards").children.length <= place) more();
  open(place);
}

function startGallery() {
  for (const id of ["filter-dataset", "filter-class", "filter-verdict", "gallery-score", "gallery-order"]) by(id).addEventListener("change", list);
  by("more").addEventListener("click", () => {
    const from = by("cards").children.length;
    more();
    by("cards").children[from]?.focus();
  });
  const viewer = by("viewer");
  by("previous").addEventListener("click", () => step(-1));
  by("next").addEventListener("click", () => step(1));
  by("close").addEventListener("click", () => viewer.close());
  viewer.addEventListener("click", (event) => {
    if (event.target === viewer) viewer.close(); // beside it
  });
  viewer.addEventListener("keydown", (event) => {
    const way = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (way === undefined) return;
    event.preventDefault();
    step(way);
  });
  viewer.addEventListener("close", () => by("cards").children[opened]?.focus());
  list();
}

startTheme();
document.querySelectorAll("[data-dataset]").forEach((dot) => (dot.style.background = data.colours[Number(dot.dataset.dataset)]));
document.querySelectorAll("table.sortable").forEach(startTable);
if (data.cards?.length) startGallery();
for (const id of ["plot-score", "plot-axis", "plot-line", "plot-figure"]) by(id)?.addEventListener("change", drawPlots);
drawPlots();
