"use strict";
// Light or dark: as the system says, or as the button says. Plots are drawn again in the colours of the page.
const drawn = [];
function colour(name) { return getComputedStyle(document.documentElement).getPropertyValue(name).trim(); }
function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  document.getElementById("theme").textContent = theme === "dark" ? "Light" : "Dark";
  for (const draw of drawn) draw();
}
function plot(id, make) {
  const draw = () => {
    const { traces, x, y, layout = {} } = make();
    const axis = (title) => ({ title: { text: title, font: { size: 12 } }, gridcolor: colour("--line"), zeroline: false, automargin: true });
    Plotly.react(id, traces, {
      font: { family: "system-ui, sans-serif", size: 12, color: colour("--soft") },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", margin: { l: 52, r: 14, t: 8, b: 44 },
      legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0, font: { size: 11 } }, hovermode: "closest",
      ...layout,
      xaxis: { ...axis(x), ...(layout.xaxis || {}) }, yaxis: { ...axis(y), ...(layout.yaxis || {}) },
    }, { responsive: true, displaylogo: false, displayModeBar: false });
  };
  drawn.push(draw);
  return draw;
}
const dark = matchMedia("(prefers-color-scheme: dark)");
document.documentElement.dataset.theme = dark.matches ? "dark" : "light";
addEventListener("DOMContentLoaded", () => {
  document.getElementById("theme").addEventListener("click", () =>
    setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark"));
  dark.addEventListener("change", () => setTheme(dark.matches ? "dark" : "light"));
  setTheme(document.documentElement.dataset.theme);
});

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}
function percent(value, digits = 2) { return value === null || value === undefined ? "–" : (100 * value).toFixed(digits); }
function withInterval(figure, sign = "") {
  const [value, low, high] = figure;
  const range = low === null || low === undefined ? null : element("small", {}, `${percent(low, 1)} to ${percent(high, 1)}`);
  return [(sign && value > 0 ? sign : "") + percent(value), range];
}

// A table whose columns can be sorted: columns are {title, value(row), cells(row), numeric}.
function sortableTable(table, columns, rows, rowClass) {
  let by = null, ascending = true;
  const body = element("tbody");
  const heads = columns.map((column, i) => element("th", { class: column.numeric ? "n" : null, scope: "col", "aria-sort": "none" },
    element("button", { type: "button", onclick: () => sort(i) }, column.title)));
  function fill() {
    const shown = [...rows];
    if (by !== null) {
      const value = columns[by].value, sign = ascending ? 1 : -1;
      shown.sort((a, b) => {
        const x = value(a), y = value(b);
        if (x === null || y === null) return (x === null) - (y === null);
        return sign * (x < y ? -1 : x > y ? 1 : 0);
      });
    }
    body.replaceChildren(...shown.map((row, i) => element("tr", { class: rowClass(row, shown[i - 1], by !== null) },
      ...columns.map((column) => element("td", { class: column.numeric ? "n" : null }, ...column.cells(row))))));
  }
  function sort(i) {
    ascending = by === i ? !ascending : !columns[i].numeric || Boolean(columns[i].lowFirst);
    by = i;
    heads.forEach((head, k) => head.setAttribute("aria-sort", k === by ? (ascending ? "ascending" : "descending") : "none"));
    fill();
  }
  table.replaceChildren(element("thead", {}, element("tr", {}, ...heads)), body);
  fill();
  return { show(chosen) { rows = chosen; fill(); } };
}
