"""Effect of lower precision: AUROC of every dataset, and how much the scores of images change.

    python benchmarks/precision.py [--limit N] [--precision 32 bf16-mixed ...]

runs the digits benchmark with both pipelines in each precision of ``--trainer.precision``, each in
a process of its own, and prints a table. Drift: median change of the primary score relative to the
first precision, in units of the score's standard deviation over all images.
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
    "32": ["--trainer.precision", "32"],
    "32, TF32": ["--trainer.precision", "32", "--model.tf32", "true"],
    "bf16-mixed": ["--trainer.precision", "bf16-mixed"],
    "bf16-true": ["--trainer.precision", "bf16-true"],
    "16-mixed": ["--trainer.precision", "16-mixed"]
    if torch.cuda.is_available()
    else [f"--trainer.plugins={CPU_HALF}"],
    "16-true": ["--trainer.precision", "16-true"],
}


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
        default=list(PRECISIONS),
        help="the first one is the reference",
    )
    args = parser.parse_args()
    limit = args.limit
    print(
        "| pipeline | precision | AUROC near / photos / letters | drift of the score | images "
        "whose stop index changed |"
    )
    print("|---|---|---|---:|---:|")
    for config in args.config:
        with tempfile.TemporaryDirectory() as folder:
            exact = None
            for precision in args.precision:
                settings = PRECISIONS[precision]
                if "TF32" in precision and not torch.cuda.is_available():
                    continue
                run = Path(folder) / precision.replace(", ", "-")
                command = [
                    sys.executable,
                    "-m",
                    "diffguard_pl.test",
                    "--config",
                    config,
                    "--data.limit",
                    limit,
                    *settings,
                ]
                command += [
                    "--trainer.default_root_dir",
                    str(run),
                    "--pictures.count",
                    "0",
                    "--page.enabled",
                    "false",
                ]
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
                frame, header = read_scores(run)
                score = header.scores[0]
                exact = frame if exact is None else exact
                metrics = pd.read_csv(run / "metrics.csv")
                is_mean = metrics["dataset"].isin(["mean", "average"])
                rows = metrics[(metrics["score"] == score) & ~is_mean]
                drift = (frame[score] - exact[score]).abs().median() / exact[score].std()
                moved = int((frame["stop_index"] != exact["stop_index"]).sum())
                figures = " / ".join(f"{100 * value:.2f}" for value in rows["auroc"])
                print(
                    f"| {config} `{score}` | {precision} | {figures} | {drift:.1e} | {moved} of "
                    f"{len(frame)} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
