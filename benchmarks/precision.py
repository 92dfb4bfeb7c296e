"""Effect of precision and device: AUROC of every dataset, and how much the scores change.

    python benchmarks/precision.py [--limit N] [--precision 32 bf16-mixed ...] [--out DIR]

runs the digits benchmark with both pipelines in each precision of ``--trainer.precision``, each in
a process of its own, and prints a table. Changes of an image's primary score are relative to the
first precision, in units of the score's standard deviation over all images. A run that ``--out``
contains is read, not repeated, so that runs of two machines can be compared: ``--precision
"32, CPU" 32 bf16-mixed`` has the CPU as reference.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd
import torch

from diffguard_pl.runs.store import read_scores

# On a CPU Lightning replaces 16-mixed by bf16-mixed, unless the plugin is given.
MIXED_PRECISION = "pytorch_lightning.plugins.precision.MixedPrecision"
CPU_HALF = f"[{{class_path: {MIXED_PRECISION}, init_args: {{precision: 16-mixed, device: cpu}}}}]"
PRECISIONS = {
    "32, CPU": ["--trainer.precision", "32", "--trainer.accelerator", "cpu"],
    "32": ["--trainer.precision", "32", "--model.tf32", "false"],
    "32, TF32": ["--trainer.precision", "32", "--model.tf32", "true"],
    "bf16-mixed": ["--trainer.precision", "bf16-mixed"],
    "bf16-true": ["--trainer.precision", "bf16-true"],
    "16-mixed": ["--trainer.precision", "16-mixed"]
    if torch.cuda.is_available()
    else [f"--trainer.plugins={CPU_HALF}"],
    "16-true": ["--trainer.precision", "16-true"],
}
ON_GPU = ["32, TF32"]
"""What only a GPU has."""
DEFAULT = [name for name in PRECISIONS if name != "32, CPU"]


def run_of(config: str, precision: str, limit: str, out: Path) -> Path | None:
    """Run a config in a precision, unless it has been run before; return the run's folder."""
    folder = out / config / f"limit_{limit}" / precision.replace(", ", "-")
    if (folder / "metrics.csv").exists():
        return folder
    if precision in ON_GPU and not torch.cuda.is_available():
        return None
    command = [sys.executable, "-m", "diffguard_pl.test", "--config", config]
    command += ["--data.limit", limit, "--pictures.count", "0", "--page.enabled", "false"]
    command += ["--trainer.default_root_dir", str(folder), *PRECISIONS[precision]]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder


def print_rows(config: str, precisions: list[str], limit: str, out: Path) -> None:
    """Print one row a precision, as soon as it has been run; the first is the reference."""
    exact = None
    for precision in precisions:
        folder = run_of(config, precision, limit, out)
        if folder is None:
            continue
        frame, header = read_scores(folder)
        score = header.scores[0]
        exact = frame if exact is None else exact
        metrics = pd.read_csv(folder / "metrics.csv")
        is_mean = metrics["dataset"].isin(["mean", "average"])
        rows = metrics[(metrics["score"] == score) & ~is_mean]
        change = (frame[score] - exact[score]).abs() / exact[score].std()
        moved = int((frame["stop_index"] != exact["stop_index"]).sum())
        figures = " / ".join(f"{100 * value:.2f}" for value in rows["auroc"])
        print(
            f"| {config} `{score}` | {precision} | {figures} | {change.median():.1e} | "
            f"{change.max():.1e} | {moved} of {len(frame)} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--limit", default="null", help="images of each dataset; half precision is slow on a CPU"
    )
    parser.add_argument("--config", nargs="+", default=["digits_gdm", "digits_ldm"])
    parser.add_argument(
        "--precision",
        nargs="+",
        choices=list(PRECISIONS),
        default=DEFAULT,
        help="the first one is the reference (default: all but the CPU's)",
    )
    parser.add_argument("--out", type=Path, help="folder that keeps the runs")
    args = parser.parse_args()
    print(
        "| pipeline | precision | AUROC near / photos / letters | median change of a score | "
        "largest | images whose stop index changed |"
    )
    print("|---|---|---|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as temporary:
        out = args.out or Path(temporary)
        for config in args.config:
            print_rows(config, args.precision, args.limit, out)


if __name__ == "__main__":
    main()
