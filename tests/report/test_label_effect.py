"""Table and CSV of reconstructions under true and false labels."""

import csv

from rich.console import Console

from diffguard_pl.metrics.label_effect import LabelEffect
from diffguard_pl.report.label_effect import label_effect_table, write_label_effects

EFFECTS = [
    LabelEffect("complete", "kl", 8, -0.1, 0.02, -3.0, 1.5, 1.0),
    LabelEffect("complete", "ssim", 8, 0.9, 0.1, 0.3, 0.1, 0.99),
    LabelEffect("no x0hat", "kl", 8, -0.2, 0.02, -1.25, 0.5, 0.875),
]


def test_the_table_has_the_first_score_alone():
    console = Console(width=100)
    with console.capture() as printed:
        console.print(label_effect_table(EFFECTS))
    assert "-1.25 ± 0.5" in printed.get()
    assert "87.50" in printed.get()
    assert "99.00" not in printed.get()


def test_the_csv_has_all_scores(tmp_path):
    write_label_effects(EFFECTS, tmp_path / "labels.csv")
    rows = list(csv.DictReader((tmp_path / "labels.csv").open()))
    assert [(row["guidance"], row["score"], row["auroc"]) for row in rows] == [
        ("complete", "kl", "1.0"),
        ("complete", "ssim", "0.99"),
        ("no x0hat", "kl", "0.875"),
    ]
