"""Fewer network evaluations (NFE) for the same answer: what each way to save them costs in AUROC.

    OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive python benchmarks/fewer_nfe.py
    python benchmarks/fewer_nfe.py draw      # only docs/images/fewer_nfe.png, from fewer_nfe.csv

Both pipelines of the embedded benchmark, by their primary score, on the tuning split: validation
digits against ``tuning``. Intervals are a bootstrap over images. All settings of a pipeline share
its draws, so ``diff_low`` to ``diff_high``, of the difference to the full run, is paired. What the
package can do runs in its engine, the other ideas in the loops below.
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
from diffguard_pl.diffusion.guidance import GuidanceInputs, Network
from diffguard_pl.metrics.bootstrap import replicates
from diffguard_pl.metrics.detection import auroc
from diffguard_pl.metrics.table import ScoreTable
from diffguard_pl.stages import Reconstruction

TABLE = Path(__file__).with_suffix(".csv")
FIGURE = Path(__file__).parent.parent / "docs" / "images" / "fewer_nfe.png"
PRIMARY_SCORE = {"ldm": "maps", "gdm": "kl"}
BATCH_SIZE = 128


class Batch:
    """N images in a loop that the package does not have, all inverted to the same depth.

    Args:
        diffguard: DiffGuard without adaptive early stop.
        images: [N, 3, H, W] in [0, 1].

    Attributes:
        nfe: Network evaluations so far.
        depth: Number of inversion steps.
        start, last: First and last schedule index of denoising.
    """

    def __init__(self, diffguard: diffguard_pl.DiffGuard, images: Tensor):
        self.diffguard, self.images, self.nfe = diffguard, images, 0.0
        self.sampler, self.schedule = diffguard.sampler(), diffguard.schedule
        self.prediction, self.x = diffguard.classify(images), diffguard.encode(images)
        self.null_labels = self.sampler.null_labels(self.prediction.labels)

        sampling = diffguard.sampling
        self.depth, self.last = sampling.inversion_steps, sampling.skip_last_steps
        self.start = int(sampling.first_denoising_index(torch.tensor([self.depth - 1])))

    def network(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """Evaluate the diffusion model."""
        self.nfe += len(x)
        return self.diffguard.backbone.eps(x, t, labels)

    def unguided(self, network: Network) -> NoiseModel:
        """Return the noise model of inversion."""

        def noise(x: Tensor, index: Tensor, level: Level, batch_index: Tensor) -> Tensor:
            eps = network(x, self.schedule.timesteps[index], self.null_labels)
            if self.sampler.clip_denoised and index[0] > 0:
                eps = ddim.clip_eps(x, eps, level)
            return eps

        return noise

    def guided(self, network: Network) -> NoiseModel:
        """Return the noise model of denoising, for N guided rows and N unguided ones, if any.

        The unguided rows share the network evaluation of the guided ones until guidance begins.
        """
        n, scales = len(self.images), self.sampler.denoising_scales()

        def noise(x: Tensor, index: Tensor, level: Level, batch_index: Tensor) -> Tensor:
            # Both reconstructions are the same before and at the first guided step.
            i = int(index[0])
            has_forked = bool(scales[i + 1 : self.start + 1].any())
            evaluated = len(x) if has_forked else n
            clip = None
            if self.sampler.clip_denoised:
                clip = torch.ones_like(level.noise, dtype=torch.bool)
            inputs = GuidanceInputs(
                network_labels=self.null_labels.repeat(2)[:evaluated],
                labels=self.prediction.labels[: n if scales[i] else 0],
                scale=scales[i].view(1, 1, 1, 1),
                clip=clip,
                unguided_copies=len(x) - evaluated,
            )
            t = self.schedule.timesteps[index][:evaluated]
            return self.sampler.guidance.predict_eps(
                network, x, t, level, inputs, self.sampler.classifier
            ).eps

        return noise

    def invert(self, model: NoiseModel, callback: StepCallback | None = None) -> Tensor:
        """Return the noise [N, C, h, w] of the images."""
        return ddim.invert(model, self.x, self.schedule, self.depth, callback=callback)[0]

    def denoise(self, model: NoiseModel, x: Tensor) -> Tensor:
        """Return the guided reconstructions [N, C, h, w], and behind them the unguided, if any."""
        if self.diffguard.sampling.with_unguided:
            x = torch.cat([x, x])
        start = torch.full((len(x),), self.start)
        return ddim.denoise(model, x, self.schedule, start, last=self.last)

    def score(self, x: Tensor) -> Tensor:
        """Return the primary score [N] of reconstructions; guided ones alone meet the input."""
        n = len(self.images)
        images = ((self.diffguard.backbone.decode(x) + 1) / 2).clamp(0, 1)
        unguided = images[n:] if len(x) > n else None
        scores = self.diffguard.compare(
            self.images, self.prediction, Reconstruction(images[:n], unguided)
        )
        return scores[self.diffguard.discrepancies.names[0]]


# ---------------------------------------------------------------------------------- the ideas


def dpm_solver(batch: Batch) -> Tensor:
    """DPM-Solver++(2M) in both directions (Lu et al. 2022, algorithm 2).

    The last denoising step is of first order.
    """
    s = batch.schedule
    unguided, guided = batch.unguided(batch.network), batch.guided(batch.network)
    noise = batch.invert(second_order(unguided, s.inversion_from, s.inversion_to))
    return batch.denoise(second_order(guided, s.denoising_from, s.denoising_to, batch.last), noise)


def second_order(
    model: NoiseModel, begin: Tensor, end: Tensor, first_order_at: int = -1
) -> NoiseModel:
    """Return the noise for which a DDIM step is one of DPM-Solver++(2M).

    Its x0hat is extrapolated from this step and the previous one, unless this step is more than
    four times as long, as latent diffusion's second step is: there errors outgrow the gain.

    Args:
        model: Noise model of first order.
        begin, end: [S] alpha-bar before and after each step.
        first_order_at: Schedule index of a step to leave at first order.
    """
    begin, end = (0.5 * torch.log(alpha_bar / (1 - alpha_bar)) for alpha_bar in (begin, end))
    previous: list[tuple[Tensor, Tensor]] = []

    def noise(x: Tensor, index: Tensor, level: Level, batch_index: Tensor) -> Tensor:
        eps, i = model(x, index, level, batch_index), int(index[0])
        x0, h = ddim.predict_x0(x, eps, level), end[i] - begin[i]
        x0_before, h_before = previous.pop() if previous else (x0, h)
        if i != first_order_at and h / h_before < 4:
            extrapolated = x0 + (h / h_before / 2).to(x) * (x0 - x0_before)
            eps = ddim.eps_from_x0(x, extrapolated, level)
        previous.append((x0, h))
        return eps

    return noise


def fixed_point(batch: Batch, iterations: int) -> Tensor:
    """Fixed-point inversion (AIDI, Pan et al. 2023).

    Each inversion step uses the noise that its denoising step is going to see.
    """
    model, s = batch.unguided(batch.network), batch.schedule

    def noise(x: Tensor, index: Tensor, level: Level, batch_index: Tensor) -> Tensor:
        eps, to = model(x, index, level, batch_index), Level.of(s.inversion_to[index], x)
        reverse_index = int((s.denoising_from == s.inversion_to[index[0]]).nonzero())
        reverse = torch.full_like(index, reverse_index)
        for _ in range(iterations):
            eps = model(ddim.step(x, eps, level, to), reverse, to, batch_index)
        return eps

    return batch.denoise(batch.guided(batch.network), batch.invert(noise))


def anchored(batch: Batch) -> Tensor:
    """PnP Inversion (Ju et al. 2024, algorithm 1).

    Each guided step is corrected by what an unguided one would miss of the state of inversion. An
    unguided reconstruction would be the input, so the input takes its place in the comparison.
    """
    trail: list[Step] = []
    x = batch.invert(batch.unguided(batch.network), trail.append)
    states = [batch.x, *(step.x for step in trail)]
    model, s, n = batch.guided(batch.network), batch.schedule, len(batch.x)
    for i in range(batch.start, batch.last - 1, -1):
        # Inversion took its noise at the same states, except at the top.
        top = i == batch.start
        index = torch.full((2 * n if top else n,), i)
        level, to = Level.of(s.denoising_from[index], x), Level.of(s.denoising_to[index], x)
        eps = model(torch.cat([x, x]) if top else x, index, level, index)
        unguided = eps[n:] if top else trail[i].eps

        # Guided step, plus what an unguided step from the state of inversion misses.
        level, to = level.select(slice(n)), to.select(slice(n))
        step = ddim.step(x, eps[:n], level, to)
        x = states[i - 1] + step - ddim.step(states[i], unguided, level, to)
    return x


def cached(batch: Batch, every: int) -> Tensor:
    """Block caching (DeepCache, Ma et al. 2024): the whole UNet at every n-th step only.

    Other steps evaluate the first convolution and the last block, which its skip connects, around
    what the other blocks returned before. They count as their fraction of the FLOPs.
    """
    unet, flops = batch.diffguard.backbone.denoiser, dict[bool, float]()
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
        whole = next(steps) % every == 0
        with replay(blocks, kept, whole, len(x)), FlopCounterMode(display=False) as counter:
            eps = batch.diffguard.backbone.eps(x, t, labels)
        flops[whole] = counter.get_total_flops() / len(x)
        batch.nfe += len(x) * flops[whole] / flops[True]
        return eps

    noise = batch.invert(batch.unguided(partial(network, count(), {})))
    return batch.denoise(batch.guided(partial(network, count(), {})), noise)


@contextmanager
def replay(
    modules: list[nn.Module], kept: dict[nn.Module, Any], whole: bool, rows: int
) -> Iterator[None]:
    """Keep the outputs of modules, or return kept ones, repeated where the rows have doubled.

    Args:
        modules: Modules to replace.
        kept: Outputs by module.
        whole: Whether to evaluate the modules and keep their outputs.
        rows: Rows of the batch.
    """

    def forward_or_kept(module: nn.Module, forward: Callable, *args: Any, **named: Any) -> Any:
        if whole:
            kept[module] = forward(*args, **named)
        return tree_map(lambda h: h if len(h) == rows else torch.cat([h, h]), kept[module])

    for module in modules:
        module.forward = partial(forward_or_kept, module, module.forward)
    try:
        yield
    finally:
        for module in modules:
            del module.forward


# ------------------------------------------------------------------------------- the settings


class Setting(NamedTuple):
    """A point of a curve.

    Attributes:
        curve: Name of the curve.
        text: Description of the setting.
        settings: Settings of DiffGuard.
        loop: Loop to run in. None: the engine.
    """

    curve: str
    text: str
    settings: dict[str, Any]
    loop: Callable[[Batch], Tensor] | None = None


def ldm(steps: int, depth: int, low: float = 0, high: float = 1) -> dict[str, Any]:
    """Return settings: ``depth`` of the steps to noise, and back but for the step at t = 1."""
    return {
        "steps": steps,
        "early_stop_steps": steps - depth,
        "skip_first_steps": steps - depth,
        "skip_last_steps": 1,
        "guidance__interval": [low, high],
    }


def gdm(steps: int, depth: int, low: float = 0, high: float = 1) -> dict[str, Any]:
    """Return settings: the same with a fixed depth in place of early stop by PSNR."""
    return {
        "steps": steps,
        "early_stop": None,
        "early_stop_steps": steps - depth,
        "forback_skip_diff": 2,
        "skip_last_steps": 1,
        "guidance__interval": [low, high],
    }


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


# ---------------------------------------------------------------------------------- measuring


@torch.no_grad()
def run(pipeline: str, setting: Setting, images: Tensor) -> tuple[Tensor, float]:
    """Return the scores [N] and the NFE per image."""
    score = PRIMARY_SCORE[pipeline]
    diffguard = diffguard_pl.load(f"digits_{pipeline}", discrepancies=[score], **setting.settings)
    if setting.loop:
        batches = [Batch(diffguard, part) for part in images.split(BATCH_SIZE)]
        scores = torch.cat([batch.score(setting.loop(batch)) for batch in batches])
        return scores, sum(batch.nfe for batch in batches) / len(images)
    stream, done = diffguard.stream(), []
    for part in images.split(BATCH_SIZE):
        done += stream.push(part)
    done += stream.drain()
    scores = torch.cat([detection.scores[score] for _, detection in done])
    return scores, diffguard.nfe / len(images)


def measure(pipeline: str) -> pd.DataFrame:
    """Return a line for each setting of a pipeline."""
    images = torch.cat([digits("val").images, tuning().images])
    is_ind = torch.arange(len(images)) < len(digits("val"))
    lines, scores = [], []
    for setting in SETTINGS[pipeline]:
        start = time.monotonic()
        found, nfe = run(pipeline, setting, images)
        area = auroc(found[is_ind], found[~is_ind])
        lines.append((pipeline, setting.curve, setting.text, round(nfe, 2), area))
        scores.append(found.double())
        print(*lines[-1], f"{time.monotonic() - start:.1f} s", flush=True)

    # Paired bootstrap: all settings share the draws of images.
    names = [str(line) for line in lines]
    values, is_ood = torch.stack(scores, dim=1).numpy(), (~is_ind).long().numpy()
    found = replicates(ScoreTable(names, ["val", "tuning"], {}, values, is_ood))
    drawn = np.stack([found["tuning", "tuning", name][:, 0] for name in names])
    table = pd.DataFrame(lines, columns=["pipeline", "curve", "setting", "nfe", "auroc"])
    table["low"], table["high"] = np.percentile(drawn, [2.5, 97.5], axis=1)
    table["diff_low"], table["diff_high"] = np.percentile(drawn - drawn[0], [2.5, 97.5], axis=1)
    return table.round(4)


# ------------------------------------------------------------------------------------ drawing

CURVES = {  # colours that the colour-blind can tell apart
    "steps": ("fewer steps", "#d55e00", "o"),
    "depth": ("less noise", "#0072b2", "s"),
    "interval": ("guidance in an interval", "#009e73", "D"),
    "2M": ("DPM-Solver++(2M)", "#cc79a7", "^"),
    "fixed point": ("fixed-point inversion", "#8d5fd3", "v"),
    "caching": ("block caching", "#b8860b", "P"),
    "anchor": ("anchored to inversion", "#56b4e9", "X"),
}


def draw_panel(panel: plt.Axes, table: pd.DataFrame) -> None:
    """Draw AUROC in percent against NFE per image."""
    full = table[table.curve == "full"].iloc[0]
    panel.axhspan(100 * full.low, 100 * full.high, color="0.92", label="full run, 95 % interval")
    panel.axhline(100 * full.auroc, color="0.45", lw=1, ls="--")
    panel.plot(full.nfe, 100 * full.auroc, "o", color="0.3", ms=9, ls="", label="full run")
    for k, curve in enumerate(CURVES):
        # Curves are moved aside a little, so that their intervals can be told apart.
        draw_curve(panel, table[table.curve == curve].sort_values("nfe"), curve, 1.012 ** (k - 3))
    hollow = {"mec": "0.3", "mew": 1.3, "ms": 7, "label": "hollow: worse than the full run"}
    panel.plot([], [], "*", color="white", mec="black", ms=14, label="fast preset")
    panel.plot([], [], "o", color="white", **hollow)
    panel.set_xscale("log")
    panel.set_xticks([], minor=True)
    panel.set_xticks(ticks := [4, 5, 6, 8, 10, 15, 20, 30], map(str, ticks))
    panel.set(xlim=(3.6, 33), xlabel="network evaluations (NFE) per image", ylabel="AUROC, %")
    panel.grid(alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)


def draw_curve(panel: plt.Axes, points: pd.DataFrame, curve: str, aside: float) -> None:
    """Draw the settings of a curve with their intervals."""
    label, colour, marker = CURVES[curve]
    x, y = points.nfe * aside, 100 * points.auroc
    interval = [y - 100 * points.low, 100 * points.high - y]
    panel.plot([], [], color=colour, marker=marker, label=label)
    panel.errorbar(x, y, interval, color=colour, lw=1.4, elinewidth=0.8)
    for i, point in points.iterrows():
        is_fast, is_worse = point.setting.startswith("fast:"), point.diff_high < 0
        look = {"marker": marker, "ms": 7, "mec": colour}
        if is_fast:
            look = {"marker": "*", "ms": 18, "mec": "black"}
        fill = "white" if is_worse else colour
        panel.plot(x[i], y[i], mfc=fill, mew=1.3, zorder=3 + is_fast, **look)


def draw(table: pd.DataFrame) -> None:
    """Draw a panel for each pipeline."""
    figure, panels = plt.subplots(2, 1, figsize=(9, 9), dpi=150)
    for panel, (pipeline, score) in zip(panels, PRIMARY_SCORE.items(), strict=True):
        draw_panel(panel, table[table.pipeline == pipeline])
        panel.set_title(f"digits_{pipeline}, score {score}", loc="left", fontsize=12)
    figure.tight_layout(rect=(0, 0.11, 1, 1), h_pad=2)
    handles = panels[0].get_legend_handles_labels()
    figure.legend(*handles, loc="lower center", ncols=3, frameon=False)
    figure.savefig(FIGURE)


if __name__ == "__main__":
    if sys.argv[1:] != ["draw"]:
        pd.concat([measure(pipeline) for pipeline in SETTINGS]).to_csv(TABLE, index=False)
    draw(pd.read_csv(TABLE))
