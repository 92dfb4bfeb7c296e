"""Fewer rows of the diffusion model for the same answer: what each way to save them costs in AUROC.

    OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive python benchmarks/fewer_nfe.py    # fewer_nfe.csv and docs/images/fewer_nfe.png
    python benchmarks/fewer_nfe.py draw                                         # the picture alone, from fewer_nfe.csv

Both pipelines of the embedded benchmark, by their headline score, on the tuning split: validation digits against ``tuning``. A row
is one image through the UNet once. Intervals are a bootstrap over images; all settings of a pipeline share the draws, so that
``diff_low`` to ``diff_high``, of the difference to the full run, is paired. What the package can do runs in its own engine, the
other ideas in the loops below.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import FlopCounterMode

import diffguard_pl
from diffguard_pl.datamodules.digits import digits, tuning
from diffguard_pl.diffusion import ddim
from diffguard_pl.diffusion.ddim import Level, NoiseModel, Step, StepCallback
from diffguard_pl.diffusion.guidance import GuidanceInputs, GuidingClassifier, Network
from diffguard_pl.metrics.bootstrap import replicates
from diffguard_pl.metrics.detection import auroc
from diffguard_pl.metrics.table import ScoreTable
from diffguard_pl.stages import Reconstruction

TABLE = Path(__file__).with_suffix(".csv")
PICTURE = Path(__file__).parent.parent / "docs" / "images" / "fewer_nfe.png"
HEADLINE = {"ldm": "maps", "gdm": "kl"}
BATCH = 128


class Batch:
    """N images in a loop that the package does not have, all inverted equally deep, and the network rows that they took so far."""

    def __init__(self, detector: diffguard_pl.DiffGuard, images: Tensor):
        self.detector, self.images, self.schedule, self.rows = (
            detector,
            images,
            detector.schedule,
            0.0,
        )
        self.prediction, self.x = (
            detector.classify(images),
            detector.backbone.encode(images * 2 - 1),
        )
        null, labels = detector.backbone.null_label, self.prediction.labels
        self.null = labels if null is None else torch.full_like(labels, null)
        sampling = detector.sampling
        self.depth, self.last = sampling.inversion_steps, sampling.skip_last_steps
        self.start = int(sampling.first_denoising_index(torch.tensor([self.depth - 1])))

    def network(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        self.rows += len(x)
        return self.detector.backbone.eps(x, t, labels)

    def unguided(self, network: Network) -> NoiseModel:
        """For inversion."""

        def noise(x: Tensor, index: Tensor, level: Level, rows: Tensor) -> Tensor:
            eps = network(x, self.schedule.timesteps[index], self.null)
            return (
                ddim.clip_eps(x, eps, level)
                if self.detector.backbone.clip_denoised and index[0] > 0
                else eps
            )

        return noise

    def guided(self, network: Network) -> NoiseModel:
        """For denoising N rows, and as many unguided ones behind them, if any, which share the network until guidance begins."""
        guidance, backbone, n = self.detector.guidance, self.detector.backbone, len(self.images)
        judge = GuidingClassifier(
            self.detector.classifier.whole, self.detector.classifier.input_size
        )
        scales = guidance.denoising_scales(self.schedule.timesteps, len(backbone.alpha_bar))

        def noise(x: Tensor, index: Tensor, level: Level, rows: Tensor) -> Tensor:
            i = int(index[0])
            asked = len(x) if scales[i + 1 : self.start + 1].any() else n
            wanted = GuidanceInputs(
                network_labels=self.null.repeat(2)[:asked],
                labels=self.prediction.labels[: n if scales[i] else 0],
                scale=scales[i].view(1, 1, 1, 1),
                clip=torch.ones_like(level.noise, dtype=torch.bool)
                if backbone.clip_denoised
                else None,
                unguided_copies=len(x) - asked,
            )
            return guidance.predict_eps(
                network, x, self.schedule.timesteps[index][:asked], level, wanted, judge
            )

        return noise

    def there(self, model: NoiseModel, callback: StepCallback | None = None) -> Tensor:
        """Picture to noise [N, C, h, w]."""
        return ddim.invert(model, self.x, self.schedule, self.depth, callback=callback)[0]

    def back(self, model: NoiseModel, x: Tensor) -> Tensor:
        """Noise to guided pictures [N, C, h, w], and behind them the unguided ones where the detector compares to them."""
        x = torch.cat([x, x]) if self.detector.sampling.with_unguided else x
        return ddim.denoise(
            model, x, self.schedule, torch.full((len(x),), self.start), last=self.last
        )

    def score(self, x: Tensor) -> Tensor:
        """The headline score [N] of what :meth:`back` gives; guided pictures alone are compared to the input."""
        images, n = ((self.detector.backbone.decode(x) + 1) / 2).clamp(0, 1), len(self.images)
        found = self.detector.compare(
            self.images,
            self.prediction,
            Reconstruction(images[:n], images[n:] if len(x) > n else None),
        )
        return found[self.detector.discrepancies.names[0]]


# ------------------------------------------------------------------------------------------------------------- the ideas


def dpm_solver(batch: Batch) -> Tensor:
    """DPM-Solver++(2M) in both directions (Lu et al. 2022, algorithm 2); the last denoising step is of first order."""
    s = batch.schedule
    noise = batch.there(
        second_order(batch.unguided(batch.network), s.inversion_from, s.inversion_to)
    )
    return batch.back(
        second_order(batch.guided(batch.network), s.denoising_from, s.denoising_to, batch.last),
        noise,
    )


def second_order(
    model: NoiseModel, begin: Tensor, end: Tensor, first_order_at: int = -1
) -> NoiseModel:
    """The noise that makes a DDIM step one of DPM-Solver++(2M): its picture is extrapolated from this step's and the last one's.

    Not over more than four times the last step, as latent diffusion's second one is: errors grow more than a second order helps.
    """
    begin, end = (0.5 * torch.log(alpha_bar / (1 - alpha_bar)) for alpha_bar in (begin, end))
    before: list[tuple[Tensor, Tensor]] = []

    def noise(x: Tensor, index: Tensor, level: Level, rows: Tensor) -> Tensor:
        eps, i = model(x, index, level, rows), int(index[0])
        x0, h = ddim.predict_x0(x, eps, level), end[i] - begin[i]
        x0_before, h_before = before.pop() if before else (x0, h)
        if i != first_order_at and h / h_before < 4:
            eps = ddim.eps_from_x0(x, x0 + (h / h_before / 2).to(x) * (x0 - x0_before), level)
        before.append((x0, h))
        return eps

    return noise


def fixed_point(batch: Batch, iterations: int) -> Tensor:
    """Fixed-point inversion (AIDI, Pan et al. 2023): each step takes the noise that its denoising step is going to see."""
    model, s = batch.unguided(batch.network), batch.schedule

    def noise(x: Tensor, index: Tensor, level: Level, rows: Tensor) -> Tensor:
        eps, to = model(x, index, level, rows), Level.of(s.inversion_to[index], x)
        reverse = torch.full_like(
            index, int((s.denoising_from == s.inversion_to[index[0]]).nonzero())
        )
        for _ in range(iterations):
            eps = model(ddim.step(x, eps, level, to), reverse, to, rows)
        return eps

    return batch.back(batch.guided(batch.network), batch.there(noise))


def anchored(batch: Batch) -> Tensor:
    """PnP Inversion (Ju et al. 2024, algorithm 1): inversion's own states mend what a step that is not guided would miss of them.

    Without guidance the input would come back exactly, so that it takes the place of the unguided reconstruction.
    """
    trail: list[Step] = []
    x, s, n = batch.there(batch.unguided(batch.network), trail.append), batch.schedule, len(batch.x)
    states, model = [batch.x, *(taken.x for taken in trail)], batch.guided(batch.network)
    for i in range(batch.start, batch.last - 1, -1):
        top = i == batch.start
        index = torch.full((2 * n if top else n,), i)
        level, to = Level.of(s.denoising_from[index], x), Level.of(s.denoising_to[index], x)
        eps = model(torch.cat([x, x]) if top else x, index, level, index)
        unguided, level, to = (
            (eps[n:] if top else trail[i].eps),
            level.select(slice(n)),
            to.select(slice(n)),
        )
        x = (
            states[i - 1]
            + ddim.step(x, eps[:n], level, to)
            - ddim.step(states[i], unguided, level, to)
        )
    return x


def cached(batch: Batch, every: int) -> Tensor:
    """Block caching (DeepCache, Ma et al. 2024): the whole UNet at every n-th step; else, at its share of a row's FLOPs, the first
    convolution and the last block, which is next to it by its skip, around what the other blocks returned before."""
    unet, of_row = batch.detector.backbone.denoiser, dict[bool, float]()
    last = unet.up_blocks[-1]
    blocks = [
        *unet.down_blocks,
        unet.mid_block,
        *unet.up_blocks[:-1],
        *last.resnets[:-1],
        *getattr(last, "attentions", [])[:-1],
    ]

    def network(
        steps: Iterator[int], kept: dict[nn.Module, Any], x: Tensor, t: Tensor, labels: Tensor
    ) -> Tensor:
        fresh = next(steps) % every == 0
        with replay(blocks, kept, fresh, len(x)), FlopCounterMode(display=False) as counter:
            eps = batch.detector.backbone.eps(x, t, labels)
        of_row[fresh] = counter.get_total_flops() / len(x)
        batch.rows += len(x) * of_row[fresh] / of_row[True]
        return eps

    noise = batch.there(batch.unguided(partial(network, count(), {})))
    return batch.back(batch.guided(partial(network, count(), {})), noise)


@contextmanager
def replay(
    modules: list[nn.Module], kept: dict[nn.Module, Any], fresh: bool, rows: int
) -> Iterator[None]:
    """Keep what modules return, or have them return it once more, twice over where rows have doubled."""

    def instead(module: nn.Module, forward: Callable, *args: Any, **named: Any) -> Any:
        if fresh:
            kept[module] = forward(*args, **named)
        return tree_map(lambda h: h if len(h) == rows else torch.cat([h, h]), kept[module])

    for module in modules:
        module.forward = partial(instead, module, module.forward)
    try:
        yield
    finally:
        for module in modules:
            del module.forward


# ---------------------------------------------------------------------------------------------------------- the settings


class Setting(NamedTuple):
    """A point of a curve: settings of the detector, and the loop that they run in, if not its own."""

    curve: str
    text: str
    settings: dict[str, Any]
    loop: Callable[[Batch], Tensor] | None = None


def ldm(steps: int, depth: int, low: float = 0, high: float = 1) -> dict[str, Any]:
    """``depth`` of so many steps into the noise, and back but for the step at t = 1, guided in an interval."""
    less = {
        "early_stop_steps": steps - depth,
        "skip_first_steps": steps - depth,
        "skip_last_steps": 1,
    }
    return {"steps": steps, **less, "guidance__interval": [low, high]}


def gdm(steps: int, depth: int, low: float = 0, high: float = 1) -> dict[str, Any]:
    """The same, but for the step at t = 0; the depth is fixed, in place of what PSNR says of each image."""
    less = {
        "early_stop": None,
        "early_stop_steps": steps - depth,
        "forback_skip_diff": 2,
        "skip_last_steps": 1,
    }
    return {"steps": steps, **less, "guidance__interval": [low, high]}


FAST = {"ldm": ldm(4, 3), "gdm": gdm(14, 3, 0.05, 0.1) | {"guidance__scale": 160}}
SETTINGS = {
    "ldm": [
        Setting("full", "10 steps to t=901", {}),
        Setting("steps", "10 steps to t=901, last left out", ldm(10, 10)),
        Setting("steps", "5 steps to t=801", ldm(5, 5)),
        Setting("steps", "4 steps to t=751", ldm(4, 4)),
        Setting("steps", "2 steps to t=501", ldm(2, 2)),
        Setting("depth", "6 steps to t=501", ldm(10, 6)),
        Setting("depth", "fast: 3 steps to t=501", FAST["ldm"]),
        Setting("depth", "2 steps to t=251", ldm(4, 2)),
        Setting("interval", "10 steps to t=901, guided in 0 to 0.75", ldm(10, 10, 0, 0.75)),
        Setting("interval", "10 steps to t=901, guided in 0 to 0.5", ldm(10, 10, 0, 0.5)),
        Setting("interval", "10 steps to t=901, guided in 0 to 0.25", ldm(10, 10, 0, 0.25)),
        Setting("2M", "4 steps to t=751", ldm(4, 4), dpm_solver),
        Setting("2M", "3 steps to t=501", ldm(4, 3), dpm_solver),
        Setting(
            "fixed point", "fast, 2 iterations", FAST["ldm"], partial(fixed_point, iterations=2)
        ),
        Setting(
            "fixed point", "fast, 1 iteration", FAST["ldm"], partial(fixed_point, iterations=1)
        ),
        Setting(
            "caching", "10 steps to t=901, every 2nd whole", ldm(10, 10), partial(cached, every=2)
        ),
        Setting(
            "caching", "10 steps to t=901, every 3rd whole", ldm(10, 10), partial(cached, every=3)
        ),
        Setting("caching", "fast, every 2nd whole", FAST["ldm"], partial(cached, every=2)),
    ],
    "gdm": [
        Setting("full", "25 steps, PSNR 52", {}),
        Setting("steps", "25 steps, PSNR 52, last left out", {"skip_last_steps": 1}),
        Setting("steps", "17 steps, PSNR 52", {"steps": 17, "skip_last_steps": 1}),
        Setting("steps", "13 steps, PSNR 52", {"steps": 13, "skip_last_steps": 1}),
        Setting("depth", "7 steps to t=280", gdm(25, 7)),
        Setting("depth", "3 steps to t=216", gdm(14, 3)),
        Setting("depth", "2 steps to t=200", gdm(10, 2)),
        Setting(
            "interval",
            "25 steps, PSNR 52, guided in 0 to 0.15",
            {"skip_last_steps": 1, "guidance__interval": [0, 0.15]},
        ),
        Setting(
            "interval",
            "25 steps, PSNR 52, guided in 0.05 to 0.1",
            {"skip_last_steps": 1, "guidance__interval": [0.05, 0.1]},
        ),
        Setting(
            "interval", "fast: 3 steps to t=216, guided twice as much in 0.05 to 0.1", FAST["gdm"]
        ),
        Setting("interval", "2 steps to t=200, guided in 0.05 to 0.15", gdm(10, 2, 0.05, 0.15)),
        Setting("2M", "7 steps to t=280", gdm(25, 7), dpm_solver),
        Setting("2M", "3 steps to t=216", gdm(14, 3), dpm_solver),
        Setting(
            "fixed point", "fast, 2 iterations", FAST["gdm"], partial(fixed_point, iterations=2)
        ),
        Setting(
            "fixed point", "fast, 1 iteration", FAST["gdm"], partial(fixed_point, iterations=1)
        ),
        Setting("anchor", "3 steps to t=273", gdm(11, 3), anchored),
        Setting("anchor", "2 steps to t=224", gdm(9, 2), anchored),
        Setting(
            "caching", "7 steps to t=280, every 2nd whole", gdm(25, 7), partial(cached, every=2)
        ),
        Setting(
            "caching", "7 steps to t=280, every 3rd whole", gdm(25, 7), partial(cached, every=3)
        ),
    ],
}


# ------------------------------------------------------------------------------------------------------------- measuring


@torch.no_grad()
def run(pipeline: str, setting: Setting, images: Tensor) -> tuple[Tensor, float]:
    """Scores [N], and the rows of the network that an image took."""
    detector = diffguard_pl.load(
        f"digits_{pipeline}", discrepancies=[HEADLINE[pipeline]], **setting.settings
    )
    if setting.loop:
        batches = [Batch(detector, part) for part in images.split(BATCH)]
        scores = torch.cat([batch.score(setting.loop(batch)) for batch in batches])
        return scores, sum(batch.rows for batch in batches) / len(images)
    stream = detector.stream()
    done = [found for part in images.split(BATCH) for found in stream.push(part)] + stream.drain()
    return torch.cat(
        [detection.scores[HEADLINE[pipeline]] for _, detection in done]
    ), detector.nfe / len(images)


def measure(pipeline: str) -> pd.DataFrame:
    """A line for each setting."""
    images = torch.cat([digits("val").images, tuning().images])
    is_ind = torch.arange(len(images)) < len(digits("val"))
    lines, scores = [], []
    for setting in SETTINGS[pipeline]:
        began = time.monotonic()
        found, rows = run(pipeline, setting, images)
        lines.append(
            (
                pipeline,
                setting.curve,
                setting.text,
                round(rows, 2),
                auroc(found[is_ind], found[~is_ind]),
            )
        )
        scores.append(found.double())
        print(*lines[-1], f"{time.monotonic() - began:.1f} s", flush=True)
    table, names = (
        pd.DataFrame(lines, columns=["pipeline", "curve", "setting", "nfe", "auroc"]),
        [str(line) for line in lines],
    )
    found = replicates(
        ScoreTable(
            names,
            ["val", "tuning"],
            {},
            torch.stack(scores, dim=1).numpy(),
            (~is_ind).long().numpy(),
        )
    )
    drawn = np.stack([found["tuning", "tuning", name][:, 0] for name in names])
    table["low"], table["high"] = np.percentile(drawn, [2.5, 97.5], axis=1)
    table["diff_low"], table["diff_high"] = np.percentile(drawn - drawn[0], [2.5, 97.5], axis=1)
    return table.round(4)


# --------------------------------------------------------------------------------------------------------------- drawing

LOOKS = {  # colours that the colour-blind tell apart
    "steps": ("fewer steps", "#d55e00", "o"),
    "depth": ("less noise", "#0072b2", "s"),
    "interval": ("guidance in an interval", "#009e73", "D"),
    "2M": ("DPM-Solver++(2M)", "#cc79a7", "^"),
    "fixed point": ("fixed-point inversion", "#8d5fd3", "v"),
    "caching": ("block caching", "#b8860b", "P"),
    "anchor": ("anchored to inversion", "#56b4e9", "X"),
}


def draw_panel(panel: plt.Axes, table: pd.DataFrame) -> None:
    """AUROC in percent against rows an image."""
    full = table[table.curve == "full"].iloc[0]
    panel.axhspan(100 * full.low, 100 * full.high, color="0.92", label="full run, 95 % interval")
    panel.axhline(100 * full.auroc, color="0.45", lw=1, ls="--")
    panel.plot(full.rows, 100 * full.auroc, "o", color="0.3", ms=9, ls="", label="full run")
    for k, (curve, (label, colour, marker)) in enumerate(LOOKS.items()):
        points = table[table.curve == curve].sort_values("nfe")
        x, y = (
            points.rows * 1.012 ** (k - 3),
            100 * points.auroc,
        )  # a little aside, so that intervals can be told apart
        panel.plot([], [], color=colour, marker=marker, label=label)
        panel.errorbar(
            x,
            y,
            [y - 100 * points.low, 100 * points.high - y],
            color=colour,
            lw=1.4,
            elinewidth=0.8,
        )
        for i, point in points.iterrows():
            fast, worse = point.setting.startswith("fast:"), point.diff_high < 0
            look = (
                {"marker": "*", "ms": 18, "mec": "black"}
                if fast
                else {"marker": marker, "ms": 7, "mec": colour}
            )
            panel.plot(
                x[i], y[i], mfc="white" if worse else colour, mew=1.3, zorder=3 + fast, **look
            )
    panel.plot([], [], "*", color="white", mec="black", ms=14, label="fast preset")
    panel.plot(
        [],
        [],
        "o",
        color="white",
        mec="0.3",
        mew=1.3,
        ms=7,
        label="hollow: worse than the full run",
    )
    panel.set_xscale("log")
    panel.set_xticks([], minor=True)
    panel.set_xticks(ticks := [4, 5, 6, 8, 10, 15, 20, 30], map(str, ticks))
    panel.set(xlim=(3.6, 33), xlabel="network rows an image", ylabel="AUROC, %")
    panel.grid(alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)


def draw(table: pd.DataFrame) -> None:
    """A panel a pipeline."""
    figure, panels = plt.subplots(2, 1, figsize=(9, 9), dpi=150)
    for panel, (pipeline, score) in zip(panels, HEADLINE.items(), strict=True):
        draw_panel(panel, table[table.pipeline == pipeline])
        panel.set_title(f"digits_{pipeline}, score {score}", loc="left", fontsize=12)
    figure.tight_layout(rect=(0, 0.11, 1, 1), h_pad=2)
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="lower center", ncols=3, frameon=False
    )
    figure.savefig(PICTURE)


if __name__ == "__main__":
    if sys.argv[1:] != ["draw"]:
        pd.concat([measure(pipeline) for pipeline in SETTINGS]).to_csv(TABLE, index=False)
    draw(pd.read_csv(TABLE))
