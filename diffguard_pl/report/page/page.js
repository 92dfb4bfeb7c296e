"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);

/** Creates an element with properties and children. */
function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

/** Formats a score; unknown ones are a dash. */
function format(value) {
  if (value === null || value === undefined) return "–";
  if (Math.abs(value) >= 100) return value.toFixed(1);
  return value.toFixed(3).replace(/^-(0\.000)$/, "$1");
}

/* Theme: the system's until the reader chooses one. */

const systemTheme = matchMedia("(prefers-color-scheme: dark)");

function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : systemTheme.matches;
}

/** Stores a theme, or reads the stored one; a browser may forbid both to local files. */
function storedTheme(theme) {
  try {
    if (theme) localStorage.setItem("diffguard-theme", theme);
    return localStorage.getItem("diffguard-theme");
  } catch {
    return null;
  }
}

function startTheme() {
  const stored = storedTheme();
  if (stored) document.documentElement.dataset.theme = stored;
  byId("theme").addEventListener("click", () => {
    const theme = isDark() ? "light" : "dark";
    storedTheme(theme);
    document.documentElement.dataset.theme = theme;
    drawPlots();
  });
  systemTheme.addEventListener("change", drawPlots);
}

/** Returns the current value of one of the style sheet's colours. */
function colourOf(name) {
  const probe = make("i");
  probe.style.color = `var(--${name})`;
  document.body.append(probe);
  const colour = getComputedStyle(probe).color;
  probe.remove();
  return colour;
}

/* Tables */

function startTable(table) {
  const body = table.tBodies[0];
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    heading.querySelector("button").addEventListener("click", () => {
      const isNumber = heading.dataset.kind === "number";
      const order = nextOrder(heading.getAttribute("aria-sort"), isNumber);
      headings.forEach((other) => other.setAttribute("aria-sort", "none"));
      heading.setAttribute("aria-sort", order);
      // Once sorted, rows of one dataset are no longer next to each other: show all names.
      table.classList.remove("grouped");
      body.append(...sortedRows(body, column, isNumber, order === "ascending" ? 1 : -1));
    });
  });
}

/** Numbers begin with the highest, names with the first; a second click reverses the order. */
function nextOrder(before, isNumber) {
  if (before === "none") return isNumber ? "descending" : "ascending";
  return before === "ascending" ? "descending" : "ascending";
}

function sortedRows(body, column, isNumber, sign) {
  const rows = [...body.rows];
  if (!isNumber) {
    const text = (row) => row.cells[column].textContent.trim();
    const compare = (a, b) => a.localeCompare(b, undefined, { numeric: true });
    return rows.sort((a, b) => sign * compare(text(a), text(b)));
  }
  const value = (row) => parseFloat(row.cells[column].dataset.value);
  return rows.sort((rowA, rowB) => {
    const [a, b] = [value(rowA), value(rowB)];
    // Unknown values come last in both orders.
    return isNaN(a) || isNaN(b) ? isNaN(a) - isNaN(b) : sign * (a - b);
  });
}

/* Plots: elements common to the run page and the comparison page. */

const linearFraction = { type: "linear", range: [-0.02, 1.02], tickformat: ".0%" };
const logFraction = {
  type: "log",
  range: [-3.3, 0.01],
  tickvals: [0.001, 0.01, 0.1, 1],
  ticktext: ["0.1 %", "1 %", "10 %", "100 %"],
};
const logFrequency = {
  type: "log",
  range: [-4, 0.02],
  tickvals: [0.0001, 0.001, 0.01, 0.1, 1],
  ticktext: ["0.01 %", "0.1 %", "1 %", "10 %", "100 %"],
};

const isLogarithmic = () => byId("plot-scale").value === "log";

function layout(x, y, more = {}) {
  const [soft, ink, line] = [colourOf("soft"), colourOf("ink"), colourOf("line")];
  const axis = {
    gridcolor: colourOf("grid"),
    linecolor: line,
    zeroline: false,
    automargin: true,
  };
  return {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: "system-ui, sans-serif", size: 12.5, color: soft },
    margin: { l: 52, r: 10, t: 34, b: 44 },
    hovermode: "closest",
    hoverlabel: { bgcolor: colourOf("raised"), bordercolor: line, font: { color: ink } },
    legend: { orientation: "h", x: 0, y: 1.01, yanchor: "bottom", font: { color: ink } },
    ...more,
    xaxis: { ...axis, title: { text: x, font: { size: 12.5 }, standoff: 10 }, ...more.xaxis },
    yaxis: { ...axis, title: { text: y, font: { size: 12.5 }, standoff: 8 }, ...more.yaxis },
  };
}

function plot(id, traces, description) {
  const place = byId(id);
  const options = { responsive: true, displayModeBar: false };
  if (place) Plotly.react(place, traces, description, options);
}

/** Escapes a name, in which Plotly would interpret tags. */
function escaped(text) {
  return String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
}

/** Returns the dash of a line: lines that share a colour differ in their dashes. */
function dashOf(number) {
  return ["solid", "dash", "dashdot", "longdash"][Math.floor(number / data.colour_count) % 4];
}

function verticalLine(x, style) {
  return { type: "line", x0: x, x1: x, y0: 0, y1: 1, yref: "paper", line: { width: 1, ...style } };
}

/** Returns the ROC curve of a score that tells nothing. */
function diagonal() {
  // Several points, so that the line is complete on a logarithmic axis.
  const x = [0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1];
  const line = { color: colourOf("line"), width: 1 };
  return { x, y: x, mode: "lines", line, hoverinfo: "skip", showlegend: false };
}

function rocCurve(points, name, line, more = {}) {
  const hovertemplate = "FPR %{x:.1%}, TPR %{y:.1%}";
  const { x, y } = points;
  return { x, y, name: escaped(name), mode: "lines", line, hovertemplate, ...more };
}

/** Returns a histogram as an outline over a light fill: many of them stay legible together. */
function histogram(edges, fractions, name, colour, dash = "solid") {
  const x = [edges[0]];
  const y = [0];
  fractions.forEach((fraction, bin) => {
    x.push(edges[bin], edges[bin + 1]);
    y.push(fraction, fraction);
  });
  x.push(edges[edges.length - 1]);
  y.push(0);
  return {
    x,
    y,
    name: escaped(name),
    mode: "lines",
    fill: "tozeroy",
    fillcolor: colour + "33",
    line: { color: colour, width: 1.4, dash },
    hovertemplate: "%{x:.4g}: %{y:.1%}",
  };
}

function drawPlots() {
  if (data.runs) drawComparison();
  else drawRun();
}

/* Plots of the run page */

function drawRun() {
  const k = Number(byId("plot-score").value);
  const datasets = data.datasets.map((name, number) => {
    return { name, number, colour: data.colours[number] };
  });
  const oodDatasets = data.ood.map((number) => datasets[number]);
  drawRocCurves(k, oodDatasets);
  drawHistograms(k, datasets);
  drawScatter(k, datasets);
  drawStops(datasets);
  drawCascade(oodDatasets);
  drawSeconds();
}

const isComparedWithMsp = (k) => data.msp !== null && data.msp !== k;

function drawRocCurves(k, oodDatasets) {
  const withMsp = isComparedWithMsp(k);
  byId("roc-note").textContent = withMsp ? "dotted: MSP" : "";
  const traces = [diagonal()];
  for (const { name, number, colour } of oodDatasets) {
    const line = { color: colour, width: 2, dash: dashOf(number) };
    traces.push(rocCurve(data.roc[data.scores[k]][number], name, line));
  }
  for (const { name, number, colour } of withMsp ? oodDatasets : []) {
    const line = { color: colour, width: 1.2, dash: "dot" };
    traces.push(rocCurve(data.roc.msp[number], `${name}, MSP`, line, { showlegend: false }));
  }
  const x = "out-of-distribution accepted (FPR)";
  const y = `${escaped(data.datasets[0])} accepted (TPR)`;
  const xaxis = isLogarithmic() ? logFraction : linearFraction;
  plot("plot-roc", traces, layout(x, y, { xaxis, yaxis: linearFraction }));
}

function drawHistograms(k, datasets) {
  const { edges, fractions } = data.histogram[data.scores[k]];
  const threshold = data.thresholds[k];
  const traces = datasets.map(({ name, number, colour }) => {
    return histogram(edges, fractions[number], name, colour, dashOf(number));
  });
  const dashed = { color: colourOf("ink"), dash: "dash" };
  const shapes = threshold === null ? [] : [verticalLine(threshold, dashed)];
  const yaxis = isLogarithmic() ? logFrequency : { tickformat: ".0%", rangemode: "tozero" };
  const x = `${escaped(data.scores[k])} (higher = more in-distribution)`;
  plot("plot-histogram", traces, layout(x, "fraction of the dataset", { shapes, yaxis }));
}

function drawScatter(k, datasets) {
  const withMsp = isComparedWithMsp(k);
  byId("scatter").hidden = !withMsp;
  if (!withMsp) return;
  const traces = datasets.map(({ name, number, colour }) => {
    const sample = data.scatter[number];
    return {
      x: sample.values[data.msp],
      y: sample.values[k],
      text: sample.index,
      name: escaped(name),
      mode: "markers",
      type: "scatter",
      marker: { color: colour, size: 5, opacity: 0.55 },
      hovertemplate: "image %{text}<br>MSP %{x:.4f}<br>%{y:.4f}",
    };
  });
  plot("plot-scatter", traces, layout("MSP", escaped(data.scores[k])));
}

function drawStops(datasets) {
  if (!data.stops) return;
  const traces = datasets.map(({ name, number, colour }) => {
    return {
      type: "bar",
      x: data.stops.steps,
      y: data.stops.fractions[number],
      name: escaped(name),
      marker: { color: colour },
      hovertemplate: "step %{x}: %{y:.1%}",
    };
  });
  const more = { barmode: "group", yaxis: { tickformat: ".0%" } };
  plot("plot-stops", traces, layout("step", "fraction of the dataset", more));
}

function drawSeconds() {
  if (!data.seconds) return;
  const { edges, fractions } = data.seconds;
  const trace = { ...histogram(edges, fractions, "", "#2b6cb0"), showlegend: false };
  const yaxis = { tickformat: ".0%", rangemode: "tozero" };
  plot("plot-seconds", [trace], layout("seconds", "fraction of images", { yaxis }));
}

/** Draws each metric against the fraction of images diffused: lines over their intervals. */
function drawCascade(oodDatasets) {
  if (!data.cascade) return;
  const { diffused, budgets, budget_index: budgetIndex, metrics } = data.cascade;
  const invisible = { mode: "lines", line: { width: 0 }, hoverinfo: "skip", showlegend: false };
  for (const metric of ["auroc", "fpr95"]) {
    const traces = oodDatasets.flatMap(({ name, number, colour }) => {
      const points = metrics[metric][number];
      const low = points.map((ends) => ends[1]);
      const high = points.map((ends) => ends[2]);
      return [
        { ...invisible, x: diffused, y: low },
        { ...invisible, x: diffused, y: high, fill: "tonexty", fillcolor: colour + "22" },
        {
          x: diffused,
          y: points.map(([value]) => value),
          name: escaped(name),
          mode: "lines+markers",
          text: budgets,
          line: { color: colour, width: 2, dash: dashOf(number) },
          marker: { size: 5 },
          hovertemplate: "budget %{text}: %{x:.1%} diffused, %{y:.2%}",
        },
      ];
    });
    const dashed = { color: colourOf("ink"), dash: "dash" };
    const shapes = budgetIndex === null ? [] : [verticalLine(diffused[budgetIndex], dashed)];
    const more = { shapes, xaxis: linearFraction, yaxis: { tickformat: ".1~%" } };
    plot(`plot-cascade-${metric}`, traces, layout("fraction of images diffused", "", more));
  }
}

/* Plots of the comparison page */

function drawComparison() {
  const comparison = data.comparisons[Number(byId("plot-comparison").value)];
  const curves = comparison.curves.map((points, i) => {
    const { letter, colour } = data.runs[i];
    const line = { color: colour, width: 2, dash: dashOf(i) };
    return rocCurve(points, `${letter}  ${comparison.scores[i]}`, line);
  });
  const xaxis = isLogarithmic() ? logFraction : linearFraction;
  const x = `${escaped(comparison.dataset)} accepted (FPR)`;
  const more = { xaxis, yaxis: linearFraction };
  plot("plot-roc", [diagonal(), ...curves], layout(x, "in-distribution accepted (TPR)", more));
  drawIntervals();
}

/** Draws the selected metric of all runs on all datasets, each with its interval. */
function drawIntervals() {
  const [metric, isDifference] = byId("plot-metric").value.split("-");
  const primary = primaryComparisons();
  const names = [...primary.keys()];
  const runs = data.runs.slice(isDifference ? 1 : 0);
  const values = (run, name) => {
    const { metrics, differences } = primary.get(name);
    return isDifference ? differences[metric][run] : metrics[metric][run];
  };

  // Markers of one dataset stay clear of those of the next.
  const spacing = Math.min(0.16, 0.76 / runs.length);
  const traces = runs.map((run, i) => {
    const offset = (i - (runs.length - 1) / 2) * spacing;
    const y = names.map((_, n) => n - offset);
    return intervalTrace(run, y, names.map((name) => values(i, name)));
  });

  const height = 100 + names.length * Math.max(26, runs.length * 11);
  const fullHeight = Math.max(byId("plot-roc").clientHeight, height);
  byId("plot-intervals").style.height = `${fullHeight}px`;
  const yaxis = {
    tickvals: names.map((_, n) => n),
    ticktext: names.map(escaped),
    range: [-0.6, names.length - 0.4],
  };
  const shapes = isDifference ? [verticalLine(0, { color: colourOf("soft") })] : [];
  const xaxis = { tickformat: isDifference ? "+.1%" : ".1%" };
  plot("plot-intervals", traces, layout("", "", { height: fullHeight, shapes, xaxis, yaxis }));
}

/** Maps each dataset to the comparison of primary scores, which precedes those of other scores. */
function primaryComparisons() {
  const primary = new Map();
  for (const comparison of data.comparisons) {
    const name = `${comparison.group}: ${comparison.dataset}`;
    if (!primary.has(name)) primary.set(name, comparison);
  }
  // The first dataset is to be at the top, but a plot's axis begins at the bottom.
  return new Map([...primary].reverse());
}

function intervalTrace(run, y, values) {
  // Runs that share a colour differ in their markers.
  const shape = Math.floor(data.runs.indexOf(run) / data.colour_count) % 4;
  const symbol = ["circle", "diamond", "square", "triangle-up"][shape];
  const percent = (value) => (value === null ? "–" : (100 * value).toFixed(2));
  const hoverText = (ends) => {
    const [at, low, high] = ends.map(percent);
    return `${at} [${low}, ${high}]`;
  };
  return {
    x: values.map(([value]) => value),
    y,
    name: escaped(run.letter),
    mode: "markers",
    type: "scatter",
    marker: { color: run.colour, size: 8, symbol },
    error_x: {
      type: "data",
      symmetric: false,
      array: values.map(([value, , high]) => high - value),
      arrayminus: values.map(([value, low]) => value - low),
      color: run.colour,
      thickness: 1.6,
      width: 0,
    },
    text: values.map(hoverText),
    hovertemplate: "%{text}",
  };
}

/* Gallery */

const CARDS_PER_BATCH = 36;
let listed = [];
let opened = -1;

const galleryScore = () => Number(byId("gallery-score").value);
const isScored = (card, k) => card.confusion[k] !== null;
const isWrong = (card, k) => isScored(card, k) && card.confusion[k] > 0;

/** Returns whether the threshold accepts or rejects the image, and whether that is correct. */
function decision(card, k) {
  if (!isScored(card, k)) return make("span", { textContent: "no score" });
  const wrong = isWrong(card, k);
  const isInd = !data.ood.includes(data.datasets.indexOf(card.dataset));
  const correctness = wrong ? "wrong" : "correct";
  const verdict = isInd !== wrong ? "accepted" : "rejected";
  return make("span", { className: correctness, textContent: `${verdict} (${correctness})` });
}

function description(card) {
  const predicted = `predicted: ${card.prediction ?? "–"}`;
  return card.label === null ? predicted : `label: ${card.label}, ${predicted}`;
}

function panel(card, name) {
  const properties = { alt: name, className: card.small ? "small" : "", decoding: "async" };
  return make("img", { src: card.pictures[name], ...properties });
}

function panels(card) {
  return Object.keys(card.pictures).map((name) => {
    return make("div", {}, panel(card, name), make("span", { textContent: name }));
  });
}

function makeCard(card, position) {
  const k = galleryScore();
  const identity = `${card.dataset} ${card.index}`;
  const score = `${data.scores[k]} ${format(card.values[k])}`;
  const dot = make("i", { className: "dot" });
  dot.style.background = data.colours[data.datasets.indexOf(card.dataset)];
  const button = make(
    "button",
    { type: "button", className: "card" },
    make("div", { className: "top" }, make("span", {}, dot, identity), decision(card, k)),
    make("div", { className: "strip" }, ...panels(card)),
    make(
      "div",
      { className: "bottom" },
      make("span", { textContent: description(card) }),
      make("span", { className: "value", textContent: score }),
    ),
  );
  button.setAttribute("aria-label", `Enlarge ${identity}, ${description(card)}, ${score}`);
  button.dataset.position = position;
  button.addEventListener("click", () => openViewer(position));
  return button;
}

/** Returns the sort key of a card: the smallest comes first, unknown scores last. */
function sortKey(order, k) {
  if (order === "confusing") return (card) => -(card.confusion[k] ?? -2);
  if (order === "low") return (card) => card.values[k] ?? Infinity;
  return (card) => -(card.values[k] ?? -Infinity);
}

/** Lists the cards that match the filters, in the selected order. */
function listCards() {
  const k = galleryScore();
  const dataset = byId("filter-dataset").value;
  const predicted = byId("filter-class").value;
  const wanted = byId("filter-decision").value;
  listed = data.cards.filter((card) => {
    if (dataset && card.dataset !== data.datasets[Number(dataset)]) return false;
    if (predicted && card.prediction !== data.classes[Number(predicted)]) return false;
    return !wanted || (isScored(card, k) && isWrong(card, k) === (wanted === "wrong"));
  });
  const key = sortKey(byId("gallery-order").value, k);
  listed.sort((a, b) => key(a) - key(b) || a.index - b.index);
  const wrong = listed.filter((card) => isWrong(card, k)).length;
  byId("gallery-count").textContent = listed.length
    ? `Images: ${listed.length}, wrong decisions: ${wrong}`
    : "No image matches the filters.";
  byId("cards").replaceChildren();
  showMore();
}

function showMore() {
  const from = byId("cards").children.length;
  const batch = listed.slice(from, from + CARDS_PER_BATCH);
  byId("cards").append(...batch.map((card, i) => makeCard(card, from + i)));
  byId("more").hidden = from + batch.length >= listed.length;
}

/* Viewer: one image of the gallery, enlarged. */

function fact(name, value) {
  const isPath = name === "path";
  return make(
    "div",
    { className: isPath ? "wide" : "" },
    make("dt", { textContent: name }),
    make("dd", { textContent: value, className: isPath ? "code" : "" }),
  );
}

function facts(card) {
  const values = {
    label: card.label,
    prediction: card.prediction,
    "reconstructed as": card.reconstructed_as,
    "stopped at step": card.stop_index,
    seconds: card.seconds === null ? null : format(card.seconds),
    path: card.path,
  };
  const known = Object.entries(values).filter(([, value]) => value !== null && value !== "");
  return known.map(([name, value]) => fact(name, value));
}

/** Returns head and body of the table of all scores of an image. */
function scoreTable(card) {
  const headings = ["Score", "Value", "Threshold", "Decision"].map((textContent) => {
    const isNumeric = textContent === "Value" || textContent === "Threshold";
    return make("th", { textContent, scope: "col", className: isNumeric ? "numeric" : "" });
  });
  const rows = data.scores.map((textContent, k) => {
    const cells = [card.values[k], data.thresholds[k]].map((value) => {
      return make("td", { textContent: format(value), className: "numeric" });
    });
    return make("tr", {}, make("td", { textContent }), ...cells, make("td", {}, decision(card, k)));
  });
  return [make("thead", {}, make("tr", {}, ...headings)), make("tbody", {}, ...rows)];
}

function openViewer(position) {
  opened = position;
  const card = listed[position];
  const focused = document.activeElement;
  byId("viewer-title").textContent = `${card.dataset} ${card.index}: ${description(card)}`;
  byId("viewer-position").textContent = `${position + 1} of ${listed.length}`;
  byId("previous").disabled = position === 0;
  byId("next").disabled = position === listed.length - 1;
  byId("viewer-panels").replaceChildren(...panels(card));
  byId("viewer-facts").replaceChildren(...facts(card));
  byId("viewer-scores").replaceChildren(...scoreTable(card));
  if (!byId("viewer").open) byId("viewer").showModal();
  // A disabled button loses the focus, and the dialog would no longer receive arrow keys.
  if (focused?.disabled) {
    ["previous", "next", "close"].map(byId).find((button) => !button.disabled).focus();
  }
}

function step(offset) {
  const position = opened + offset;
  if (position < 0 || position >= listed.length) return;
  while (byId("cards").children.length <= position) showMore();
  openViewer(position);
}

function startGallery() {
  const filters = ["filter-dataset", "filter-class", "filter-decision"];
  for (const id of [...filters, "gallery-score", "gallery-order"]) {
    byId(id).addEventListener("change", listCards);
  }
  byId("more").addEventListener("click", () => {
    const first = byId("cards").children.length;
    showMore();
    byId("cards").children[first]?.focus();
  });

  const viewer = byId("viewer");
  byId("previous").addEventListener("click", () => step(-1));
  byId("next").addEventListener("click", () => step(1));
  byId("close").addEventListener("click", () => viewer.close());
  viewer.addEventListener("click", (event) => {
    // The dialog itself is the target only beside its content, on the backdrop.
    if (event.target === viewer) viewer.close();
  });
  viewer.addEventListener("keydown", (event) => {
    const offset = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (offset === undefined) return;
    event.preventDefault();
    step(offset);
  });
  viewer.addEventListener("close", () => byId("cards").children[opened]?.focus());
  listCards();
}

startTheme();
for (const dot of document.querySelectorAll("[data-dataset]")) {
  dot.style.background = data.colours[Number(dot.dataset.dataset)];
}
document.querySelectorAll("table.sortable").forEach(startTable);
if (data.cards?.length) startGallery();
for (const id of ["plot-score", "plot-scale", "plot-comparison", "plot-metric"]) {
  byId(id)?.addEventListener("change", drawPlots);
}
drawPlots();
