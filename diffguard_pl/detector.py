"""DiffGuard in plain PyTorch: classify, invert, reconstruct under the label, compare (Gao et al., ICCV 2023, arXiv 2308.07687).

detector = diffguard_pl.load("digits_ldm")
detection = detector(images)                # [N, 3, 16, 16] in [0, 1]
detection.labels, detection.reconstructions, detection.scores["features"]
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from .backbones import Backbone
from .classifier import Classifier, View
from .diffusion.ddim import Callback, denoise, first_denoising_index, invert
from .diffusion.early_stop import EarlyStop, Similarity, psnr
from .diffusion.guidance import Condition, Guidance, Protected
from .discrepancy import Discrepancies, PiqScore, Seen
from .errors import InputError, choose

EARLY_STOP_METRICS = ["psnr", "dists", "lpips"]


@dataclass(frozen=True)
class Prediction:
    """Stage 1, classify.

    Attributes:
        view: logits, features and feature maps of the images.
        predicted: [N] the class that the classifier gives.
        labels: [N] the class to reconstruct under: the predicted one, or an oracle's.
        cam: the classifier's activation [N, 1, H, W] in [0, 1] for the label, where the guidance asks for it.
    """

    view: View
    predicted: Tensor
    labels: Tensor
    cam: Tensor | None


@dataclass(frozen=True)
class Inversion:
    """Stage 2, invert.

    Attributes:
        noise: [N, C, h, w].
        stop_index: [N] the schedule index that inversion stopped at, on the CPU.
    """

    noise: Tensor
    stop_index: Tensor


@dataclass(frozen=True)
class Reconstruction:
    """Stage 3, reconstruct. Images are [N, 3, H, W] in [0, 1].

    Attributes:
        guided: under the label.
        unguided: without guidance from the same noise; None unless the detector compares to it.
    """

    guided: Tensor
    unguided: Tensor | None


@dataclass(frozen=True)
class Detection:
    """What the detector says of images.

    Attributes:
        labels: [N] the class each was reconstructed under.
        reconstructions: [N, 3, H, W] in [0, 1].
        scores: each discrepancy [N], higher = more in-distribution.
        prediction: stage 1, with the classifier's logits and the activation map.
        stop_index: [N] where inversion stopped.
        unguided: the unguided reconstructions, where there are any.
    """

    labels: Tensor
    reconstructions: Tensor
    scores: dict[str, Tensor]
    prediction: Prediction
    stop_index: Tensor
    unguided: Tensor | None


class DiffGuard(nn.Module):
    """The detector.

    Args:
        classifier: the classifier under protection.
        backbone: the diffusion model.
        guidance: what steers a reconstruction to the label.
        steps: of the DDIM schedule.
        discrepancies: how to compare, by name; the first is the headline score.
        compare_to: ``input``, or ``unguided`` for a second reconstruction without guidance (the original's ``uncond_aux``).
        early_stop_steps: leave out the last so many inversion steps.
        skip_first_steps: leave out the first so many denoising steps; not used where forback_skip_diff is set.
        early_stop: adaptive early stop: stop inverting an image when a similarity to the input falls below its threshold.
            Any of psnr (in dB of the original's scale), dists, lpips (both 1 - distance).
        forback_skip_diff: start denoising so many steps above where inversion stopped; 0: at the top of the schedule.
    """

    def __init__(
        self,
        classifier: Classifier,
        backbone: Backbone,
        guidance: Guidance,
        steps: int,
        discrepancies: Sequence[str],
        compare_to: str = "input",
        early_stop_steps: int = 0,
        skip_first_steps: int = 0,
        early_stop: dict[str, float] | None = None,
        forback_skip_diff: int = 0,
    ):
        super().__init__()
        choose("compare_to", compare_to, ["input", "unguided"])
        for name in early_stop or {}:
            choose("early_stop metric", name, EARLY_STOP_METRICS)
        if guidance.needs_null_label and backbone.null_label is None:
            raise InputError(
                f"guidance: {type(guidance).__name__} needs a backbone that knows 'no class'; {type(backbone).__name__} does not"
            )
        if (guidance.needs_pixels or early_stop) and not backbone.is_pixel_space:
            what = "early_stop" if early_stop else type(guidance).__name__
            raise InputError(f"{what} works on images, and {type(backbone).__name__} diffuses latents")
        if backbone.num_classes is not None and classifier.num_classes > backbone.num_classes:
            raise InputError(
                f"the classifier knows {classifier.num_classes} classes, the backbone {backbone.num_classes}, and it can only "
                "reconstruct under labels that it knows; take one for the same classes"
            )
        self.classifier, self.backbone, self.guidance = classifier, backbone, guidance
        self.schedule = backbone.schedule(steps)
        for name, value in (("early_stop_steps", early_stop_steps), ("skip_first_steps", skip_first_steps)):
            if not 0 <= value < len(self.schedule):
                raise InputError(
                    f"{name}={value}: expected 0 to {len(self.schedule) - 1}, for there are {len(self.schedule)} steps"
                )
        if forback_skip_diff < 0:
            raise InputError(f"forback_skip_diff={forback_skip_diff}: expected 0 or more")
        self.compare_to, self.early_stop, self.forback_skip_diff = compare_to, early_stop or {}, forback_skip_diff
        self.early_stop_steps, self.skip_first_steps = early_stop_steps, skip_first_steps
        self.discrepancies = Discrepancies(discrepancies)
        self.unet_rows = 0
        """Rows that have gone through the diffusion model so far."""
        self.stop_metrics = nn.ModuleDict({name: PiqScore(name) for name in self.early_stop if name != "psnr"})

    def train(self, mode: bool = True) -> "DiffGuard":
        """Nothing here is ever trained: dropout and batch statistics stay as they are for evaluation."""
        return super().train(False)

    @property
    def input_size(self) -> int:
        """Side of the images that the detector takes."""
        return self.backbone.input_size

    @torch.no_grad()
    def forward(self, images: Tensor, labels: Tensor | None = None) -> Detection:
        """All four stages.

        Args:
            images: [N, 3, H, W] in [0, 1].
            labels: [N] oracle labels; those below 0, and all where None: what the classifier predicts.

        Raises:
            InputError: images of another shape or range, or with NaN.
        """
        prediction = self.classify(images, labels)
        inversion = self.invert(images, prediction)
        reconstruction = self.reconstruct(inversion, prediction)
        scores = self.compare(images, prediction, reconstruction)
        return Detection(
            prediction.labels, reconstruction.guided, scores, prediction, inversion.stop_index, reconstruction.unguided
        )

    def classify(self, images: Tensor, labels: Tensor | None = None) -> Prediction:
        """Stage 1: the label to reconstruct under, and where the classifier looks if the guidance asks."""
        self.check(images)
        cam = None
        if self.guidance.cam_cut is None:
            view = self.classifier.view(images)
        else:
            view, cam = self.classifier.view_with_cam(images, labels)
        predicted = view.logits.argmax(dim=1)
        chosen = predicted if labels is None else torch.where(labels < 0, predicted, labels)
        return Prediction(view, predicted, chosen, cam)

    def invert(self, images: Tensor, prediction: Prediction, callback: Callback | None = None) -> Inversion:
        """Stage 2: image to noise."""
        images = images * 2 - 1
        x = self.backbone.encode(images)
        condition = self._condition(prediction, x)
        stop = None
        if self.early_stop:
            similarities: dict[str, Similarity] = {"psnr": psnr}
            similarities |= {name: _on_unit_range(metric) for name, metric in self.stop_metrics.items()}  # type: ignore[arg-type]
            stop = EarlyStop(x, self.early_stop, similarities, self.backbone.crop)
        model = self.guidance.inversion(self._eps, condition)
        steps = len(self.schedule) - self.early_stop_steps
        return Inversion(*invert(model, x, self.schedule, steps, self.backbone.clip_denoised, stop, callback))

    def reconstruct(self, inversion: Inversion, prediction: Prediction, callback: Callback | None = None) -> Reconstruction:
        """Stage 3: noise to image under the label; where the detector compares to it also without guidance, in the same batch."""
        x, stop_index = inversion.noise, inversion.stop_index
        condition = self._condition(prediction, x)
        if self.compare_to == "unguided":
            condition = _and_unguided(condition)
            x, stop_index = torch.cat([x, x]), torch.cat([stop_index, stop_index])
        start = first_denoising_index(stop_index, len(self.schedule), self.skip_first_steps, self.forback_skip_diff)
        classifier = Protected(self.classifier.whole, self.classifier.input_size)
        model = self.guidance.denoising(self._eps, condition, classifier, self.backbone.clip_denoised)
        images = self.backbone.decode(denoise(model, x, self.schedule, start, callback))
        images = ((images + 1) / 2).clamp(0, 1)
        count = len(inversion.noise)
        return Reconstruction(images[:count], images[count:] if self.compare_to == "unguided" else None)

    def compare(self, images: Tensor, prediction: Prediction, reconstruction: Reconstruction) -> dict[str, Tensor]:
        """Stage 4: how alike the reconstruction is to the input, or to the unguided reconstruction."""
        if reconstruction.unguided is None:
            reference, view = images, prediction.view
        else:
            reference = reconstruction.unguided
            view = self.classifier.view(reference) if self.discrepancies.needs_classifier else prediction.view
        seen = self.classifier.view(reconstruction.guided) if self.discrepancies.needs_classifier else view
        return self.discrepancies(Seen(reference, *view), Seen(reconstruction.guided, *seen))

    def check(self, images: Tensor) -> None:
        """Raise an `InputError` unless images are [N, 3, input_size, input_size], floating point, in [0, 1]."""
        size = self.input_size
        if images.ndim != 4 or tuple(images.shape[1:]) != (3, size, size):
            raise InputError(f"images are {list(images.shape)}, expected [N, 3, {size}, {size}]")
        if not images.is_floating_point():
            raise InputError(f"images are {images.dtype}, expected floating point in [0, 1]")
        bad = ~((images >= 0) & (images <= 1)).all(dim=(1, 2, 3))
        if bad.any():
            i = int(bad.nonzero()[0])
            what = "NaN" if images[i].isnan().any() else f"values from {images[i].min():.3g} to {images[i].max():.3g}"
            raise InputError(f"image {i} of the batch has {what}, expected numbers in [0, 1]")

    def mask(self, prediction: Prediction) -> Tensor | None:
        """Where guidance acts [N, 1, H, W], True inside; None where it acts everywhere."""
        cam, cut = prediction.cam, self.guidance.cam_cut
        if cut is None or cam is None:
            return None
        return cam > cut if cut >= 0 else cam < -cut

    def _eps(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        self.unet_rows += len(x)
        return self.backbone.eps(x, t, labels)

    def _condition(self, prediction: Prediction, x: Tensor) -> Condition:
        mask = self.mask(prediction)
        if mask is not None:
            mask = nn.functional.interpolate(mask.float(), x.shape[-2:]) > 0.5
        return Condition(prediction.labels, self.backbone.null_label, torch.ones(len(x), dtype=torch.bool), mask)


def _and_unguided(condition: Condition) -> Condition:
    """The same rows twice, the second time unguided."""
    return replace(
        condition,
        labels=torch.cat([condition.labels] * 2),
        guided=torch.cat([condition.guided, torch.zeros_like(condition.guided)]),
        mask=None if condition.mask is None else torch.cat([condition.mask] * 2),
    )


def _on_unit_range(metric: PiqScore) -> Similarity:
    """The original compares (x+1)/2 unclamped, and takes 1 - d of LPIPS too."""
    offset = 1.0 - metric.offset
    return lambda x, image: offset + metric((x + 1) / 2, (image + 1) / 2)
