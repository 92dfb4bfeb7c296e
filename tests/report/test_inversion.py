"""Table, CSV and picture of the similarity along the inversion."""

import csv

import numpy as np
from PIL import Image
from rich.console import Console

from diffguard_pl.metrics.inversion import InversionPoint
from diffguard_pl.report.inversion import draw_inversion, inversion_table, write_inversion_csv
from diffguard_pl.report.style import COLOURS


def points(datasets=("ind", "$ood_$"), steps: int = 20) -> list[InversionPoint]:
    std = {"psnr": 0.5, "ssim": 0.1}
    return [
        InversionPoint(dataset, i, 10 * i, 7, {"psnr": 60.0 - i - d, "ssim": 1 / (1 + i)}, std)
        for d, dataset in enumerate(datasets)
        for i in range(steps)
    ]


def test_the_csv_has_every_dataset_and_step(tmp_path):
    write_inversion_csv(points(), tmp_path / "inversion.csv")
    rows = list(csv.DictReader((tmp_path / "inversion.csv").open()))
    assert len(rows) == 40
    assert rows[23] == {
        "dataset": "$ood_$", "step": "3", "timestep": "30", "images": "7",
        "psnr_mean": "56.0", "psnr_std": "0.5", "ssim_mean": "0.25", "ssim_std": "0.1",
    }  # fmt: skip


def test_the_table_has_some_steps_and_leaves_out_empty_datasets():
    empty = [InversionPoint("none", i, i, 0, {"psnr": 0.0}, {"psnr": 0.0}) for i in range(20)]
    console = Console(width=120)
    with console.capture() as printed:
        console.print(inversion_table([*points(), *empty]))
    assert "step 19" in printed.get()
    assert "41.0 ± 0.5" in printed.get()
    assert "none" not in printed.get()


def test_the_picture_has_a_line_for_each_dataset_and_the_threshold(tmp_path):
    path = tmp_path / "inversion.png"
    draw_inversion(points(), {"psnr": 52.0}, "title", path)
    pixels = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
    drawn = {tuple(colour) for colour in np.unique(pixels, axis=0)}
    assert {tuple(bytes.fromhex(colour[1:])) for colour in (*COLOURS[:2], "#666666")} <= drawn
