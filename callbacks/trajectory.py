"""Pictures of inversion and denoising, step by step."""

from typing import Any

import pytorch_lightning as pl
import torch
from PIL import Image
from torch import Tensor

from diffguard_pl.diffusion.ddim import Step, StepCallback
from diffguard_pl.errors import InputError
from diffguard_pl.evaluation.module import DiffGuardModule
from diffguard_pl.report.gallery import folder_name
from diffguard_pl.report.pictures import Frame, draw_strips, to_image
from diffguard_pl.stages import as_batch


class TrajectoryLogger(pl.Callback):
    """Draws ``trajectories/SET_INDEX.png``: an image on its way to noise and back, every n-th step of both.

    Args:
        count: images of each data set, the first ones; 0: no pictures.
        every: how many steps lie between two pictures; the last step of each way is always there.
    """

    def __init__(self, count: int = 0, every: int = 5):
        if count < 0 or every < 1:
            raise InputError(f"trajectory.count={count}, every={every}: expected at least 0 and 1")
        self.count, self.every = count, every
        self.drawn: dict[int, int] = {}

    def on_test_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: DiffGuardModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.size = size = len(as_batch(batch, "image")["image"])
        self.images = (
            min(size, self.count - self.drawn.get(dataloader_idx, 0))
            if trainer.is_global_zero
            else 0
        )
        self.drawn[dataloader_idx] = self.drawn.get(dataloader_idx, 0) + self.images
        self.frames: dict[str, dict[int, list[Frame]]] = {"inversion": {}, "denoising": {}}
        pl_module.on_step = (
            {way: self._keep(pl_module, way, size) for way in self.frames} if self.images else {}
        )

    def on_test_batch_end(
        self, trainer: pl.Trainer, pl_module: DiffGuardModule, outputs: Any, *_: Any
    ) -> None:
        pl_module.on_step = {}
        if not self.images or pl_module.error is not None:
            return
        dataset, batch, detection = outputs["finished"][
            -1
        ]  # a batch that is watched is done at once
        if detection is None or len(batch["image"]) != self.size:
            return  # some of the batch had results before, so its rows are others
        names = pl_module.class_names()
        size = len(batch["image"])
        for i in range(self.images):
            label = int(detection.labels[i])
            denoised = [("denoised under the label", i, detection.reconstructions)]
            if detection.unguided is not None:
                denoised.append(("denoised without guidance", size + i, detection.unguided))
            strips = {
                "inversion": [
                    Frame("input", to_image(batch["image"][i].cpu())),
                    *self.frames["inversion"][i],
                ]
            }
            strips |= {
                way: [
                    *self.frames["denoising"].get(row, []),
                    Frame("reconstruction", to_image(pictures[i].cpu())),
                ]
                for way, row, pictures in denoised
            }
            index = int(batch["index"][i])
            title = f"{dataset} {index}, reconstructed as {names[label] if names else label}"
            draw_strips(
                strips,
                title,
                pl_module.run_folder / "trajectories" / f"{folder_name(dataset)}_{index}.png",
            )

    def _keep(self, pl_module: DiffGuardModule, way: str, size: int) -> StepCallback:
        """Keeps pictures of the chosen images' rows; denoising has unguided rows too, after those of all ``size`` images."""
        backbone, frames = pl_module.diffguard.backbone, self.frames[way]

        def keep(step: Step) -> None:
            # an image may stop inverting at any step, so the latest is kept until the next one comes
            shown = (step.index % self.every == 0) | torch.tensor(way == "inversion")
            chosen = ((step.rows % size < self.images) & shown).nonzero()[:, 0]
            if len(chosen) == 0:
                return
            pictures = self._pictures(backbone.decode(step.x[chosen.to(step.x.device)]))
            for row, i, picture in zip(
                step.rows[chosen].tolist(), step.index[chosen].tolist(), pictures, strict=True
            ):
                strip = frames.setdefault(row, [])
                if strip and (i - 1) % self.every and way == "inversion":
                    strip.pop()
                strip.append(Frame(f"step {i}", picture))

        return keep

    @staticmethod
    def _pictures(images: Tensor) -> list[Image.Image]:
        shown = ((images.detach() + 1) / 2).clamp(0, 1).to(torch.float32).cpu()
        return [to_image(image) for image in shown]
