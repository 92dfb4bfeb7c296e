"""Writes the paper's tables into docs/benchmarks/paper.md, from the data file of the package.

python scripts/docs/published.py
"""

from pathlib import Path

from diffguard_pl.report.published import METHODS, Method, Published, published

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks" / "paper.md"
BEGIN, END = "<!-- published results: begin -->", "<!-- published results: end -->"
TITLES = {
    1: "Table 1, CIFAR-10: AUROC / FPR@95",
    2: "Table 2, ImageNet: AUROC / FPR@95",
    3: "Table 3, ImageNet, parts of GDM's guidance: AUROC",
    4: "Table 4, ImageNet, thresholds of GDM's early stop: AUROC of the best distance",
}


def with_tables(page: str) -> str:
    """Return the page with the tables between its two marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    text = "\n\n".join(f"**{title}**\n\n{table(number)}" for number, title in TITLES.items())
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{after}"


def table(number: int) -> str:
    """Return a table of the paper as Markdown, a line per method."""
    rows = [row for row in published() if row.table == number]
    datasets = list(dict.fromkeys(row.dataset for row in rows))
    lines = [
        f"| method | config | score | {' | '.join(datasets)} |",
        f"|---|---|---|{'---:|' * len(datasets)}",
    ]
    methods = {method.name: method for method in METHODS if method.table == number}
    for name in dict.fromkeys(row.method for row in rows):
        values = {row.dataset: value(row) for row in rows if row.method == name}
        cells = [name, *origin(methods.get(name)), *(values[dataset] for dataset in datasets)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def origin(method: Method | None) -> tuple[str, str]:
    """Return the cells of config and score; empty for a method that is not in this package."""
    if method is None:
        return "", ""
    return f"`{method.config}`", ", ".join(f"`{score}`" for score in method.scores)


def value(row: Published) -> str:
    """Return a published result in percent."""
    fpr95 = f" / {100 * row.fpr95:.2f}" if row.fpr95 is not None else ""
    return f"{100 * row.auroc:.2f}{fpr95}"


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
