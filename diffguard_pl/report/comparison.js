"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const letter = (i) => "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[i % 26];
const runColour = (i) => data.colours[i % data.colours.length];
const columns = [
  { title: "group", value: (l) => l.group, cells: (l) => [l.group] },
  { title: "OOD set", value: (l) => l.dataset, cells: (l) => [l.dataset] },
  { title: "score", value: (l) => l.scores.join(), cells: (l) => [[...new Set(l.scores)].join(" / ")] },
];
for (const [figure, name] of [["auroc", "AUROC"], ["fpr95", "FPR@95"]]) {
  data.runs.forEach((_, i) => columns.push({ title: `${name} ${letter(i)}`, numeric: true, lowFirst: figure === "fpr95",
    value: (l) => l.figures[i][figure][0], cells: (l) => withInterval(l.figures[i][figure]) }));
  data.runs.slice(1).forEach((_, i) => columns.push({ title: `${name} ${letter(i + 1)} − A`, numeric: true, lowFirst: figure === "fpr95",
    value: (l) => l.less[figure][i][0], cells: (l) => withInterval(l.less[figure][i], "+") }));
}
const table = sortableTable(document.getElementById("results"), columns, data.lines, (line, before, sorted) => [
  line.headline ? "headline" : "", !sorted && before && before.dataset !== line.dataset ? "first" : ""].join(" ").trim() || null);
const rows = document.getElementById("rows"), chosen = document.getElementById("set");
rows.append(element("option", { value: "all" }, "every score that all runs have"), element("option", { value: "headline" }, "headline scores"));
rows.addEventListener("change", () => table.show(data.lines.filter((line) => rows.value === "all" || line.headline)));
const heads = data.lines.filter((line) => line.headline);
const places = [...new Set(heads.filter((line) => line.dataset !== "mean").map((line) => line.dataset))];
chosen.append(...places.map((name) => element("option", { value: name }, name)));

plot("intervals", () => ({
  traces: data.runs.map((run, i) => ({ type: "scatter", mode: "markers", name: `${letter(i)} ${run.headline}`,
    x: heads.map((line) => line.dataset === "mean" ? `${line.group}, average` : line.dataset), y: heads.map((line) => 100 * line.figures[i].auroc[0]),
    error_y: { type: "data", symmetric: false, thickness: 1.5, array: heads.map((line) => 100 * (line.figures[i].auroc[2] - line.figures[i].auroc[0])),
      arrayminus: heads.map((line) => 100 * (line.figures[i].auroc[0] - line.figures[i].auroc[1])) },
    marker: { color: runColour(i), size: 8 } })),
  x: "", y: "AUROC in percent", layout: { scattermode: "group" },
}));
const drawRoc = plot("roc", () => ({
  traces: data.runs.map((run, i) => {
    const d = data.sets[i].indexOf(chosen.value) - 1;
    const [x, y] = d >= 0 ? data.roc[i][0][d] : [[], []];
    return { x, y, name: `${letter(i)} ${run.headline}`, mode: "lines", line: { color: runColour(i), width: 2 } };
  }),
  x: `share of ${chosen.value} accepted`, y: `share of ${data.sets[0][0]} accepted`,
  layout: { xaxis: { range: [-0.01, 1.01] }, yaxis: { range: [-0.01, 1.02] } },
}));
chosen.addEventListener("change", drawRoc);
