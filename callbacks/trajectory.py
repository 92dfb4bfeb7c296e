"""Pictures of inversion and denoising, step by step."""

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from diffguard_pl.diffusion.ddim import Step, StepCallback
from diffguard_pl.errors import InputError
from diffguard_pl.evaluation.module import DiffGuardModule
from diffguard_pl.report.gallery import folder_name
from diffguard_pl.report.pictures import Frame, draw_strips, to_image
from diffguard_pl.stages import Detection, as_batch


class TrajectoryLogger(pl.Callback):
    """Draws an image's way to noise and back: ``trajectories/DATASET_INDEX.png``.

    Args:
        count: Number of images of each dataset, the first ones. 0 for no pictures.
        every: Number of steps from one frame to the next; the last step is always drawn.
    """

    def __init__(self, count: int = 0, every: int = 5):
        if count < 0 or every < 1:
            raise InputError(
                f"trajectory.count={count}, every={every}: must be at least 0 and at least 1"
            )
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
        drawn = self.drawn.get(dataloader_idx, 0)
        self.batch_size = len(as_batch(batch, "image")["image"])
        self.images = min(self.batch_size, self.count - drawn) if trainer.is_global_zero else 0
        self.drawn[dataloader_idx] = drawn + self.images
        self.frames: dict[str, dict[int, list[Frame]]] = {"inversion": {}, "denoising": {}}
        pl_module.on_step = {}
        if self.images:
            pl_module.on_step = {
                stage: self._keep_frames(pl_module, stage) for stage in self.frames
            }

    def on_test_batch_end(
        self, trainer: pl.Trainer, pl_module: DiffGuardModule, outputs: Any, *_: Any
    ) -> None:
        pl_module.on_step = {}
        if not self.images or pl_module.error is not None:
            return
        # a watched batch is finished at once, as the last one
        dataset, batch, detection = outputs["finished"][-1]
        if detection is None or len(batch["image"]) != self.batch_size:
            return  # a resumed run has left out images, so that rows are those of others
        names = pl_module.class_names()
        for row in range(self.images):
            index, label = int(batch["index"][row]), int(detection.labels[row])
            title = f"{dataset} {index}, reconstructed as {names[label] if names else label}"
            path = pl_module.run_folder / "trajectories" / f"{folder_name(dataset)}_{index}.png"
            draw_strips(self._strips(row, batch["image"], detection), title, path)

    def _strips(self, row: int, images: Tensor, detection: Detection) -> dict[str, list[Frame]]:
        """Return the frames of one image by the name of their strip."""

        def denoised(row_in_batch: int, reconstructions: Tensor) -> list[Frame]:
            steps = self.frames["denoising"].get(row_in_batch, [])
            return [*steps, Frame("reconstruction", to_image(reconstructions[row]))]

        first = Frame("input", to_image(images[row]))
        strips = {
            "inversion": [first, *self.frames["inversion"][row]],
        }
        if detection.reconstructions is not None:
            strips["denoised under the label"] = denoised(row, detection.reconstructions)
        if detection.unguided is not None:
            # unguided rows follow after those of all images
            unguided_row = self.batch_size + row
            strips["denoised without guidance"] = denoised(unguided_row, detection.unguided)
        return strips

    def _keep_frames(self, pl_module: DiffGuardModule, stage: str) -> StepCallback:
        """Return a function that keeps the frames of the drawn images in one stage."""
        backbone, strips = pl_module.diffguard.backbone, self.frames[stage]
        inverting = stage == "inversion"

        def keep(step: Step) -> None:
            # any inversion step may be an image's last one, so each is kept until the next
            is_drawn = (step.index % self.every == 0) | torch.tensor(inverting)
            is_chosen = step.batch_index % self.batch_size < self.images
            chosen = (is_chosen & is_drawn).nonzero()[:, 0]
            if len(chosen) == 0:
                return
            x = backbone.decode(step.x[chosen.to(step.x.device)])
            images = ((x.detach() + 1) / 2).clamp(0, 1).float().cpu()
            rows, indices = step.batch_index[chosen].tolist(), step.index[chosen].tolist()
            for row, index, image in zip(rows, indices, images, strict=True):
                strip = strips.setdefault(row, [])
                previous_is_drawn = (index - 1) % self.every == 0
                if inverting and strip and not previous_is_drawn:
                    strip.pop()
                strip.append(Frame(f"step {index}", to_image(image)))

        return keep
