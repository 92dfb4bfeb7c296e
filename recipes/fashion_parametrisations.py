"""Compare DDPM, EDM and flow matching on Fashion-MNIST: the same network, data and training steps.

    python recipes/fashion.py edm flow
    python recipes/fashion_parametrisations.py [--split tuning]

runs ``fashion_ldm`` with each of the three models, at 5, 10 and 20 steps, which are uniform in the
model's timesteps, or for EDM in Karras' distances (a run that exists is resumed or read). Other
arguments go to the runs, such as ``--data.limit 150``. Prints a table in Markdown: AUROC in percent
with the 95 % interval of a bootstrap over images, mean over the held-out classes (near) and over
the other datasets (far); with ``--split tuning``, on the tuning dataset.
"""

from itertools import product
from pathlib import Path

from studies import run_once, study_parser

from diffguard_pl.names import MEAN
from diffguard_pl.report.results import RunResults, read_results

MODELS = {
    "DDPM": ("ldm", "uniform"),
    "EDM": ("edm", "karras"),
    "flow matching": ("flow", "uniform"),
}
"""Part of ``recipes/fashion.py`` and distances of the steps, by the name of a row."""
STEPS = (5, 10, 20)
SCORES = ("gmsd", "latents", "features", "kl")


def run(model: str, steps: int, split: str, weights: Path, out: Path, settings: list[str]) -> Path:
    """Run ``fashion_ldm`` with a model, unless it has been run before; return the folder."""
    part, spacing = MODELS[model]
    settings = [*settings, "--model.steps", str(steps), "--data.split", split]
    settings += ["--model.discrepancies", f"[{', '.join(SCORES)}]", "--pictures.count", "0"]
    if part != "ldm":
        model_path = weights / "split_1" / f"fashion_{part}"
        backbone = "--model.backbone.init_args"
        settings += ["--model.backbone", "diffguard_pl.backbones.DiffusersPipeline"]
        settings += [f"{backbone}.checkpoint", str(model_path), f"{backbone}.spacing", spacing]
    return run_once("fashion_ldm", out / split / f"{part}_{spacing}_{steps}", settings)


def cells(results: RunResults, group: str) -> list[str]:
    """Return the AUROC of each score on a group of datasets, with its interval."""
    rows = {
        row.score: row
        for row in results.results
        if row.group == group and (row.dataset == MEAN or group == "tuning")
    }
    found = []
    for score in SCORES:
        row = rows[score]
        assert row.intervals
        low, high = row.intervals["auroc"]
        found.append(f"{100 * row.metrics.auroc:.1f} ({100 * low:.1f} to {100 * high:.1f})")
    return found


def main() -> None:
    parser = study_parser(__doc__, "fashion_parametrisations")
    parser.add_argument("--split", choices=("test", "tuning"), default="test")
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS)
    arguments, settings = parser.parse_known_args()
    groups = ("tuning",) if arguments.split == "tuning" else ("near", "far")
    print(f"| model | steps | NFE | {' | '.join(f'{s}, {g}' for g in groups for s in SCORES)} |")
    print("|---|---:|---:" + "|---:" * len(SCORES) * len(groups) + "|")
    for model, steps in product(MODELS, arguments.steps):
        given = arguments.split, arguments.weights, arguments.out, settings
        results = read_results(run(model, steps, *given))
        found = [cell for group in groups for cell in cells(results, group)]
        nfe = results.frame["nfe"].mean()
        print(f"| {model} | {steps} | {nfe:g} | {' | '.join(found)} |", flush=True)


if __name__ == "__main__":
    main()
