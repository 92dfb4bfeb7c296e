"""Batches of images in, their detections out, with full batches of the diffusion model between."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..stages import Detection, Gates, Prediction
from .engine import Engine
from .method import Method
from .timing import Stopwatch
from .trajectory import Request


class Stream:
    """Takes batches of images and returns their detections later, in the same order.

    The diffusion model's batch is filled across the boundaries of these batches, see
    :mod:`.engine`.

    Args:
        diffguard: DiffGuard.
        before_pass: Called before each pass of the diffusion model.

    Attributes:
        engine: Engine of the diffusion model, which knows how full its batches were.
        stopwatch: Seconds of ``classify`` (and encode), ``diffuse`` and ``compare`` (and decode).
    """

    def __init__(self, diffguard: Method, before_pass: Callable[[], None] = lambda: None):
        self.diffguard = diffguard
        self.engine = Engine(diffguard.sampler(), diffguard.slots, before_pass)
        self.stopwatch = Stopwatch()
        self.device = torch.device("cpu")
        # Feature maps are large, 16 MB an image for a ResNet-50: drop those that nobody compares.
        self.keeps_maps = diffguard.compares_input_maps

    @torch.no_grad()
    def push(
        self,
        images: Tensor,
        labels: Tensor | None = None,
        tag: Any = None,
        gates: Gates | None = None,
    ) -> list[tuple[Any, Any]]:
        """Take a batch of images and return what is done of earlier ones.

        Args:
            images: [N, 3, H, W] in [0, 1].
            labels: [N] oracle labels. Negative ones, or None, stand for the predicted class.
            tag: Whatever should come back with the detection.
            gates: Decide which images are diffused, and which of these are reconstructed. None:
                all are.

        Returns:
            The tag of each batch and its :class:`~diffguard_pl.Detection`.
        """
        self.device = images.device
        with self.stopwatch.timing("classify", images.device):
            # Stage 1, and the images that the gate lets pass and whose label the model knows.
            prediction = self.diffguard.classify(images, labels)
            diffuses, reconstructs = gates or Gates()
            passed = None if diffuses is None else diffuses(prediction).cpu()
            known = self.diffguard.has_counterpart(prediction)
            if known is not None:
                passed = known.cpu() if passed is None else passed & known.cpu()
            payload = Payload(tag, images, prediction, passed)
            if not self.keeps_maps:
                payload.prediction = prediction.without_maps()

            # Only those are diffused.
            if passed is not None and not passed.all():
                images, prediction = images[passed], prediction.select(passed)
            x = self.diffguard.encode(images) if len(images) else images
            mask = self.diffguard.latent_mask(prediction, x)
        if len(images) and self.diffguard.own_nfe:
            with self.stopwatch.timing("diffuse", images.device):
                payload.measured = self.diffguard.measure(images, x, prediction.labels)

        # Stages 2 and 3 wait in the engine for a full batch.
        self.engine.submit(Request(x, prediction.labels, mask, payload, reconstructs))
        return self._run()

    def push_nothing(self, tag: Any) -> list[tuple[Any, Detection | None]]:
        """Take a batch without images: its tag comes back in its turn, with None."""
        nothing = torch.zeros(0, dtype=torch.long)
        self.engine.submit(Request(nothing, nothing, payload=Payload(tag)))
        return self._run()

    @torch.no_grad()
    def drain(self) -> list[tuple[Any, Any]]:
        """Finish and return all that is left."""
        return self._run(drain=True)

    def _run(self, drain: bool = False) -> list[tuple[Any, Any]]:
        with self.stopwatch.timing("diffuse", self.device):
            done = self.engine.run(drain)
        with self.stopwatch.timing("compare", self.device):
            return [(request.payload.tag, self._detection(request)) for request in done]

    def _detection(self, request: Request) -> Detection | None:
        """Return the detection of all images of a batch, including those that the gate stopped."""
        payload: Payload = request.payload
        images, prediction, passed = payload.images, payload.prediction, payload.passed
        if images is None or prediction is None:
            return None

        # All images were diffused.
        if passed is None or passed.all():
            return self._compared(images, prediction, request)

        # Some were not.
        part = None
        if passed.any():
            part = self._compared(images[passed], prediction.select(passed), request)
        return self._with_gaps(part, images, prediction, passed)

    def _compared(self, images: Tensor, prediction: Prediction, request: Request) -> Detection:
        """Return the detection of the diffused images of a request."""
        detection = self.diffguard.detection(
            images,
            prediction,
            request.stop_index,
            path=request.path,
            measured=request.payload.measured,
        )
        if request.guided is not None:
            detection = self._with_reconstructions(detection, images, request)
        return replace(detection, nfe=torch.tensor(request.nfe) + self.diffguard.own_nfe)

    def _with_reconstructions(
        self, detection: Detection, images: Tensor, request: Request
    ) -> Detection:
        """Decode the reconstructions of a request, compare them and add the results."""
        x = [part for part in (request.guided, request.unguided) if part is not None]
        prediction, kept = detection.prediction, request.stop_index >= 0
        if kept.all():
            reconstruction = self.diffguard.decode(torch.cat(x))
            scores = self.diffguard.compare(images, prediction, reconstruction, request.x)
            return replace(
                detection,
                reconstructions=reconstruction.guided,
                unguided=reconstruction.unguided,
                scores=scores | detection.scores,
            )

        # A gate has kept some from being reconstructed: they get NaN.
        guided, unguided, found = None, None, {}
        if kept.any():
            reconstruction = self.diffguard.decode(torch.cat([part[kept] for part in x]))
            guided, unguided = reconstruction.guided, reconstruction.unguided
            found = self.diffguard.compare(
                images[kept], prediction.select(kept), reconstruction, request.x[kept]
            )
        one_per_image = prediction.view.logits[:, 0]
        scores = {
            name: _spread(found.get(name), kept, one_per_image)
            for name in self.diffguard.score_names
            if name not in detection.scores
        }
        return replace(
            detection,
            reconstructions=_spread(guided, kept, images),
            unguided=_spread(unguided, kept, images) if len(x) == 2 else None,
            scores=scores | detection.scores,
        )

    def _with_gaps(
        self, part: Detection | None, images: Tensor, prediction: Prediction, passed: Tensor
    ) -> Detection:
        """Spread the detection of the images that passed the gate over all images.

        The others get NaN, stop index -1 and NFE 0.

        Args:
            part: Detection of the images that passed. None if none did.
            images: [N, 3, H, W] all images.
            prediction: Prediction of all images.
            passed: bool [N], True where the gate let an image pass.
        """

        # Baselines come from the classifier alone, so all images have them.
        integers = torch.zeros(len(images), dtype=torch.long)
        one_per_image = prediction.view.logits[:, 0]
        scores = {
            name: _spread(part.scores[name] if part else None, passed, one_per_image)
            for name in self.diffguard.score_names
            if name not in prediction.baselines
        }
        reconstructions = unguided = None
        if self.diffguard.sampling.reconstructs:
            reconstructions = _spread(part.reconstructions if part else None, passed, images)
        if self.diffguard.sampling.with_unguided:
            unguided = _spread(part.unguided if part else None, passed, images)
        return Detection(
            prediction.labels,
            reconstructions,
            scores | prediction.baselines,
            prediction,
            _spread(part.stop_index if part else None, passed, integers, -1),
            unguided,
            _spread(part.nfe if part else None, passed, integers, 0),
        )


def _spread(
    values: Tensor | None, passed: Tensor, like: Tensor, fill: float = float("nan")
) -> Tensor:
    """Return a tensor like another one, with values where images passed and a filling elsewhere.

    Args:
        values: One for each image that passed. None if none did.
        passed: bool [N].
        like: [N, ...].
        fill: The filling.
    """
    whole = torch.full_like(like, fill)
    if values is not None:
        whole[passed] = values.to(whole)
    return whole


@dataclass
class Payload:
    """What a stream keeps of a batch until its results are there.

    Attributes:
        tag: Tag of the batch.
        images: [N, 3, H, W] in [0, 1]. None for a batch without images.
        prediction: Stage 1.
        passed: bool [N], True where the gate let an image pass. None without a gate.
        measured: Features of path scores with network evaluations of their own, of the images that
            passed.
    """

    tag: Any
    images: Tensor | None = None
    prediction: Prediction | None = None
    passed: Tensor | None = None
    measured: dict[str, Tensor] = field(default_factory=dict)
