"""TODO."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..stages import Detection, Gate, Prediction, _of_rows
from .engine import Engine
from .timing import Stopwatch
from .trajectory import Job, Method

if TYPE_CHECKING:
    from ..diffguard import DiffGuard


class Stream:
    """Batches of images in, their detections out, in the same order, but not at once: see :mod:`.diffusion.engine`.

    Args:
        detector: of the images.
        before_pass: called before each pass of the diffusion model.

    Attributes:
        engine: that knows how full the batches are.
        stopwatch: with the seconds of ``classify`` (and encode), ``diffuse`` and ``compare`` (and decode).
    """

    def __init__(self, detector: "DiffGuard", before_pass: Callable[[], None] = lambda: None):
        self.detector = detector
        method = Method(
            schedule=detector.schedule,
            guidance=detector.guidance,
            classifier=detector._protected(),
            train_steps=len(detector.backbone.alpha_bar),
            null_label=detector.backbone.null_label,
            inversion_steps=len(detector.schedule) - detector.early_stop_steps,
            skip_first_steps=detector.skip_first_steps,
            skip_last_steps=detector.skip_last_steps,
            forback_skip_diff=detector.forback_skip_diff,
            clip=detector.backbone.clip_denoised,
            unguided=detector.compare_to == "unguided",
            stop=detector._early_stop() if detector.early_stop else None,
        )
        self.engine = Engine(detector._eps, method, detector.slots, before_pass)
        self.stopwatch = Stopwatch()
        self.device = torch.device("cpu")
        self.keeps_maps = detector.discrepancies.needs_maps and detector.compare_to == "input"
        """Feature maps of images on their way: they are large, 16 MB an image for a ResNet-50."""

    @torch.no_grad()
    def push(
        self,
        images: Tensor,
        labels: Tensor | None = None,
        tag: Any = None,
        gate: Gate | None = None,
    ) -> list[tuple[Any, Any]]:
        """Take images; returns what is done of those that came before: the tag of each batch and its :class:`Detection`.

        Args:
            images: as of :meth:`DiffGuard.forward`.
            labels: as of :meth:`DiffGuard.forward`.
            tag: whatever should come back with the detection.
            gate: which of the images to diffuse; none: all.
        """
        with self.stopwatch.timing("classify", images.device):
            prediction = self.detector.classify(images, labels)
            passed = None if gate is None else gate(prediction).cpu()
            whole = Ticket(tag, images, prediction, passed)
            if passed is not None and not passed.all():
                images, prediction = images[passed], _of_rows(prediction, passed)
            x = self.detector._encoded(images) if len(images) else images
            if not self.keeps_maps:
                whole.prediction = replace(
                    whole.prediction, view=whole.prediction.view._replace(maps=[])
                )
        self.device = images.device
        self.engine.submit(Job(x, prediction.labels, self.detector._mask(prediction, x), whole))
        return self._run()

    def push_nothing(self, tag: Any) -> list[tuple[Any, Detection | None]]:
        """A batch without images: its tag comes back when its turn has come, with None."""
        nothing = torch.zeros(0, dtype=torch.long)
        self.engine.submit(Job(nothing, nothing, ticket=Ticket(tag)))
        return self._run()

    @torch.no_grad()
    def drain(self) -> list[tuple[Any, Any]]:
        """The rest."""
        return self._run(drain=True)

    def _run(self, drain: bool = False) -> list[tuple[Any, Any]]:
        with self.stopwatch.timing("diffuse", self.device):
            done = self.engine.run(drain)
        with self.stopwatch.timing("compare", self.device):
            return [self._detected(job) for job in done]

    def _detected(self, job: Job) -> tuple[Any, Any]:
        tag, images, prediction, passed = (
            job.ticket.tag,
            job.ticket.images,
            job.ticket.prediction,
            job.ticket.passed,
        )
        if images is None:
            return tag, None
        if passed is None or passed.all():
            return tag, self._compared(images, prediction, job)
        if not passed.any():
            return tag, _with_gaps(None, images, prediction, passed, self.detector)
        detection = self._compared(images[passed], _of_rows(prediction, passed), job)
        return tag, _with_gaps(detection, images, prediction, passed, self.detector)

    def _compared(self, images: Tensor, prediction: Prediction, job: Job) -> Detection:
        x = job.guided if job.unguided is None else torch.cat([job.guided, job.unguided])
        detection = self.detector._detection(
            images, prediction, job.stop_index, self.detector._decoded(x, len(images))
        )
        return replace(detection, nfe=torch.tensor(job.nfe))


@dataclass
class Ticket:
    """What a stream wants back with the results of images: their tag, themselves, stage 1, and which of them are diffused."""

    tag: Any
    images: Tensor | None = None
    prediction: Any = None
    passed: Tensor | None = None


def _with_gaps(
    found: Detection | None,
    images: Tensor,
    prediction: Prediction,
    passed: Tensor,
    detector: "DiffGuard",
) -> Detection:
    """The detection of all images, from that of those that passed the gate."""

    def spread(part: Tensor | None, like: Tensor, fill: float = float("nan")) -> Tensor:
        whole = torch.full_like(like, fill)
        if part is not None:
            whole[passed] = part.to(whole)
        return whole

    one = prediction.view.logits[:, 0]
    scores = {
        name: spread(found.scores[name] if found else None, one)
        for name in detector.discrepancies.names
    }
    return Detection(
        prediction.labels,
        spread(found.reconstructions if found else None, images),
        scores | prediction.baselines,
        prediction,
        spread(found.stop_index if found else None, torch.zeros(len(images), dtype=torch.long), -1),
        spread(found.unguided if found else None, images)
        if detector.compare_to == "unguided"
        else None,
        spread(found.nfe if found else None, torch.zeros(len(images), dtype=torch.long), 0),
    )
