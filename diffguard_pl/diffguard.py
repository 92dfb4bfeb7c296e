"""DiffGuard in plain PyTorch: classify, invert, reconstruct under the label, compare (Gao et al., ICCV 2023, arXiv 2308.07687).

detector = diffguard_pl.load("digits_ldm")
detection = detector(images)                # [N, 3, 16, 16] in [0, 1]
detection.labels, detection.reconstructions, detection.scores["features"]
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .backbones import Backbone
from .classifiers.classifier import Classifier
from .diffusion.ddim import Callback, Level, NoiseModel, denoise, first_denoising_index, invert
from .diffusion.early_stop import PSNR, EarlyStop, Similarity
from .diffusion.guidance import Guidance, GuidanceInputs, Protected
from .dtypes import at_least_float32
from .engine.stream import Stream
from .errors import InputError, choose
from .scores.baselines.collection import Baselines
from .scores.baselines.names import DEFAULT_BASELINES
from .scores.discrepancies import Discrepancies, Seen
from .scores.piq_scores import FeatureScore
from .scores.training_features import training_features
from .stages import Detection, Inversion, Prediction, Reconstruction

EARLY_STOP_METRICS = ["psnr", "dists", "lpips"]
Watch = dict[str, Callback]
"""What is called after each step of ``inversion`` and ``denoising``."""


class DiffGuard(nn.Module):
    """The detector.

    Args:
        classifier: the classifier under protection.
        backbone: the diffusion model.
        guidance: what steers a reconstruction to the label.
        steps: of the DDIM schedule.
        discrepancies: how to compare, by name, or by the import path of one of your own; the first is the headline score.
        compare_to: ``input``, or ``unguided`` for a second reconstruction without guidance (the original's ``uncond_aux``).
        early_stop_steps: leave out the last so many inversion steps.
        skip_first_steps: leave out the first so many denoising steps; not used where forback_skip_diff is set.
        skip_last_steps: leave out the last so many denoising steps, which take out what little noise is left.
        early_stop: adaptive early stop: stop inverting an image when a similarity to the input falls below its threshold.
            Any of psnr (in dB of the original's scale), dists, lpips (both 1 - distance).
        forback_skip_diff: start denoising so many steps above where inversion stopped; 0: at the top of the schedule.
        slots: rows of the diffusion model's batch. It is kept full with rows of different images, across batches; scores do not
            depend on it.
        compile: compile the diffusion model (``torch.compile``), for batches of as many rows as there are slots: for long runs.
        baselines: scores of the classifier alone, from the pass that is made anyway: names of
            :data:`~diffguard_pl.scores.baselines.names.BASELINES`, or settings by name, such as ``{knn: {K: 50}}``.
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
        skip_last_steps: int = 0,
        early_stop: dict[str, float] | None = None,
        forback_skip_diff: int = 0,
        slots: int = 64,
        compile: bool = False,
        baselines: Sequence[str] | Mapping[str, Mapping[str, float] | None] = DEFAULT_BASELINES,
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
            raise InputError(
                f"{what} works on images, and {type(backbone).__name__} diffuses latents"
            )
        if backbone.num_classes is not None and classifier.num_classes > backbone.num_classes:
            raise InputError(
                f"the classifier knows {classifier.num_classes} classes, the backbone {backbone.num_classes}, and it can only "
                "reconstruct under labels that it knows; take one for the same classes"
            )
        if not hasattr(backbone, "alpha_bar"):
            raise InputError(
                f"backbone: {type(backbone).__name__} has no alpha_bar, the signal level of its training schedule"
            )
        self.classifier, self.backbone, self.guidance = classifier, backbone, guidance
        self.schedule = backbone.schedule(steps)
        given = {
            "early_stop_steps": early_stop_steps,
            "skip_first_steps": skip_first_steps,
            "skip_last_steps": skip_last_steps,
        }
        for name, value in given.items():
            if not 0 <= value < len(self.schedule):
                raise InputError(
                    f"{name}={value}: expected 0 to {len(self.schedule) - 1}, for there are {len(self.schedule)} steps"
                )
        if forback_skip_diff < 0:
            raise InputError(f"forback_skip_diff={forback_skip_diff}: expected 0 or more")
        if slots < guidance.rows:
            raise InputError(
                f"slots={slots}: expected at least {guidance.rows}, the rows that a step under guidance takes"
            )
        self.slots, self.compiled = slots, compile
        if compile:
            backbone.compile_blocks()
        self.compare_to, self.early_stop, self.forback_skip_diff = (
            compare_to,
            early_stop or {},
            forback_skip_diff,
        )
        self.early_stop_steps, self.skip_first_steps, self.skip_last_steps = (
            early_stop_steps,
            skip_first_steps,
            skip_last_steps,
        )
        stop = torch.tensor(
            [0 if early_stop else len(self.schedule) - early_stop_steps - 1]
        )  # the first that there may be
        start = int(
            first_denoising_index(stop, len(self.schedule), skip_first_steps, forback_skip_diff)
        )
        if start < skip_last_steps:
            raise InputError(
                f"skip_last_steps={skip_last_steps}: denoising may begin at step {start} and would take none; give less of "
                "it or of skip_first_steps, or more forback_skip_diff"
            )
        scales = guidance.denoising_scales(self.schedule.timesteps, len(backbone.alpha_bar))
        if guidance.scale and not scales.any():
            raise InputError(
                f"guidance: interval={list(guidance.interval)}: holds none of the {len(self.schedule)} time steps"
            )
        self.discrepancies = Discrepancies(discrepancies)
        self.baselines = Baselines(baselines, classifier)
        if twice := set(self.discrepancies.names) & set(self.baselines.names):
            raise InputError(
                f"{min(twice)} is the name of a discrepancy and of a baseline; rename the discrepancy"
            )
        self.nfe = 0
        """GuidanceInputs that have gone through the diffusion model so far."""
        self.stop_metrics = nn.ModuleDict(
            {name: FeatureScore(name) for name in self.early_stop if name != "psnr"}
        )

    def train(self, mode: bool = True) -> "DiffGuard":
        """Nothing here is ever trained: dropout and batch statistics stay as they are for evaluation."""
        return super().train(False)

    def networks_to(self, dtype: torch.dtype) -> None:
        """Classifier and diffusion model in another precision, such as ``torch.bfloat16``.

        Schedule, states, guidance and discrepancies stay in float32. For mixed precision use
        ``torch.autocast``. For float64 from end to end use :meth:`double` and float64 images.
        """
        self.classifier.networks_to(dtype)
        self.backbone.networks_to(dtype)

    @property
    def score_names(self) -> list[str]:
        """The discrepancies, the headline one first, and the baselines."""
        return self.discrepancies.names + self.baselines.names

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
        stream = self.stream()
        stream.push(images, labels)
        ((_, detection),) = stream.drain()
        return detection

    def stream(self, before_pass: Callable[[], None] = lambda: None) -> "Stream":
        """For more images than one batch: the diffusion model's batch is filled across their boundaries.

        Args:
            before_pass: called before each pass of the diffusion model.
        """
        self.eval()  # somebody's own classifier may have been set to train since
        return Stream(self, before_pass)

    def plainly(
        self, images: Tensor, labels: Tensor | None = None, watch: Watch | None = None
    ) -> Detection:
        """All four stages one after the other, in the plain loops: what :meth:`forward` is tested against.

        Args:
            images: as of :meth:`forward`.
            labels: as of :meth:`forward`.
            watch: called after each step of ``inversion`` and of ``denoising``.
        """
        watch = watch or {}
        prediction = self.classify(images, labels)
        inversion = self.invert(images, prediction, watch.get("inversion"))
        reconstruction = self.reconstruct(inversion, prediction, watch.get("denoising"))
        return self._detection(images, prediction, inversion.stop_index, reconstruction)

    def classify(self, images: Tensor, labels: Tensor | None = None) -> Prediction:
        """Stage 1: the label to reconstruct under, and where the classifier looks if the guidance asks."""
        self.check(images)
        if labels is not None and (labels >= self.classifier.num_classes).any():
            raise InputError(
                f"labels: {int(labels.max())} is among them; the classes are 0 to {self.classifier.num_classes - 1}"
            )
        cam = None
        if self.guidance.cam_cut is None:
            view = self.classifier.view(images)
        else:
            view, cam = self.classifier.view_with_cam(images, labels)
        predicted = view.logits.argmax(dim=1)
        chosen = predicted if labels is None else torch.where(labels < 0, predicted, labels)
        return Prediction(view, predicted, chosen, cam, self.baselines(view, images))

    def fit(self, loader: Iterable[Any]) -> None:
        """Fit the baselines that need it, to the features of in-distribution training images.

        Args:
            loader: of pairs (image, label) or dicts with these keys, in batches; images [N, 3, H, W] in [0, 1].
        """
        self.eval()
        if self.baselines.needs_fit:
            self.baselines.fit_features(*training_features(self.classifier, loader))

    @torch.no_grad()
    def invert(
        self, images: Tensor, prediction: Prediction, callback: Callback | None = None
    ) -> Inversion:
        """Stage 2: image to noise."""
        x = self._encoded(images)
        stop = None
        if self.early_stop:
            early_stop = self._early_stop()
            reference = early_stop.reference(x)
            stop = lambda x, rows: early_stop.done(x, [kept[rows] for kept in reference])  # noqa: E731
        model = self._noise_model(prediction, x, inverting=True)
        steps = len(self.schedule) - self.early_stop_steps
        return Inversion(
            *invert(model, x, self.schedule, steps, self.backbone.clip_denoised, stop, callback)
        )

    @torch.no_grad()
    def reconstruct(
        self, inversion: Inversion, prediction: Prediction, callback: Callback | None = None
    ) -> Reconstruction:
        """Stage 3: noise to image under the label; where the detector compares to it also without guidance, in the same batch."""
        x, stop_index = inversion.noise, inversion.stop_index
        if self.compare_to == "unguided":
            x, stop_index = torch.cat([x, x]), torch.cat([stop_index, stop_index])
        start = first_denoising_index(
            stop_index, len(self.schedule), self.skip_first_steps, self.forback_skip_diff
        )
        model = self._noise_model(prediction, x, inverting=False)
        return self._decoded(
            denoise(model, x, self.schedule, start, callback, self.skip_last_steps),
            len(inversion.noise),
        )

    def _detection(
        self,
        images: Tensor,
        prediction: Prediction,
        stop_index: Tensor,
        reconstruction: Reconstruction,
    ) -> Detection:
        """Stage 4, and all that is known in the end."""
        scores = self.compare(images, prediction, reconstruction) | prediction.baselines
        return Detection(
            prediction.labels,
            reconstruction.guided,
            scores,
            prediction,
            stop_index,
            reconstruction.unguided,
        )

    def _encoded(self, images: Tensor) -> Tensor:
        """What is diffused of images in [0, 1]; in float32, in float64 where the networks are."""
        dtype = torch.promote_types(self.backbone.dtype, torch.float32)
        return self.backbone.encode(images * 2 - 1).to(dtype)

    def _decoded(self, x: Tensor, count: int) -> Reconstruction:
        """The reconstructions [count, ...] under the label, and behind them those without guidance, if any."""
        images = ((at_least_float32(self.backbone.decode(x)) + 1) / 2).clamp(0, 1)
        return Reconstruction(
            images[:count], images[count:] if self.compare_to == "unguided" else None
        )

    def compare(
        self, images: Tensor, prediction: Prediction, reconstruction: Reconstruction
    ) -> dict[str, Tensor]:
        """Stage 4: how alike the reconstruction is to the input, or to the unguided reconstruction."""
        if reconstruction.unguided is None:
            reference, view = images, prediction.view
        else:
            reference = reconstruction.unguided
            view = (
                self.classifier.view(reference)
                if self.discrepancies.needs_classifier
                else prediction.view
            )
        seen = (
            self.classifier.view(reconstruction.guided)
            if self.discrepancies.needs_classifier
            else view
        )
        return self.discrepancies(Seen(reference, *view), Seen(reconstruction.guided, *seen))

    def check(self, images: Tensor) -> None:
        """Raise an `InputError` unless images are [N, 3, input_size, input_size], floating point, in [0, 1]."""
        size = self.input_size
        if not isinstance(images, Tensor):
            raise InputError(
                f"images are a {type(images).__name__}, expected a tensor [N, 3, {size}, {size}]"
            )
        if images.ndim != 4 or tuple(images.shape[1:]) != (3, size, size) or len(images) == 0:
            none = "" if images.ndim != 4 or len(images) else "; there are none"
            raise InputError(
                f"images are {list(images.shape)}, expected [N, 3, {size}, {size}]{none}"
            )
        if not images.is_floating_point():
            raise InputError(f"images are {images.dtype}, expected floating point in [0, 1]")
        bad = ~((images >= 0) & (images <= 1)).all(dim=(1, 2, 3))
        if bad.any():
            i = int(bad.nonzero()[0])
            what = (
                "NaN"
                if images[i].isnan().any()
                else f"values from {images[i].min():.3g} to {images[i].max():.3g}"
            )
            raise InputError(f"image {i} of the batch has {what}, expected numbers in [0, 1]")

    def mask(self, prediction: Prediction) -> Tensor | None:
        """Where guidance acts [N, 1, H, W], True inside; None where it acts everywhere."""
        cam, cut = prediction.cam, self.guidance.cam_cut
        if cut is None or cam is None:
            return None
        return cam > cut if cut >= 0 else cam < -cut

    def _eps(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        self.nfe += len(x)
        if not self.compiled:
            return at_least_float32(self.backbone.eps(x, t, labels))
        parts = zip(x.split(self.slots), t.split(self.slots), labels.split(self.slots), strict=True)
        return torch.cat([self._eps_of_full_batch(*part) for part in parts])

    def _eps_of_full_batch(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """A network that is compiled takes batches of one size: the first row fills what is left."""
        n, more = len(x), self.slots - len(x)
        if more:
            x, t, labels = (
                torch.cat([part, part[:1].expand(more, *part.shape[1:])]) for part in (x, t, labels)
            )
        return at_least_float32(self.backbone.eps(x, t, labels)[:n])

    def _protected(self) -> Protected:
        return Protected(self.classifier.whole, self.classifier.input_size)

    def _early_stop(self) -> EarlyStop:
        similarities: dict[str, Similarity] = {"psnr": PSNR()}
        similarities |= {name: _OnUnitRange(metric) for name, metric in self.stop_metrics.items()}  # type: ignore[arg-type]
        return EarlyStop(self.early_stop, similarities, self.backbone.crop)

    def _mask(self, prediction: Prediction, x: Tensor) -> Tensor | None:
        """Where to steer x [N, C, h, w]: bool [N, 1, h, w]."""
        mask = self.mask(prediction)
        return None if mask is None else nn.functional.interpolate(mask.float(), x.shape[-2:]) > 0.5

    def _noise_model(self, prediction: Prediction, x: Tensor, inverting: bool) -> NoiseModel:
        """For the plain loops, of the rows of x: the images', and in denoising behind them the same ones without guidance."""
        guidance, labels, count = self.guidance, prediction.labels, len(prediction.labels)
        mask = None if inverting else self._mask(prediction, x)
        crops = guidance.crops(len(self.schedule), x.shape[-1])
        scales = torch.full((len(self.schedule),), guidance.inversion_scale)
        if not inverting:
            scales = guidance.denoising_scales(
                self.schedule.timesteps, len(self.backbone.alpha_bar)
            )
        taken = itertools.count()

        def noise(x: Tensor, index: Tensor, level: Level, rows: Tensor) -> Tensor:
            scale = torch.where(rows < count, scales[index], 0.0)
            steers, tells = (
                guidance.steers(scale, mask is not None),
                guidance.tells(scale, mask is not None),
            )
            order = steers.argsort(descending=True, stable=True)
            steered, images = order[: int(steers.sum())], rows[order] % count
            null = (
                labels
                if self.backbone.null_label is None
                else torch.full_like(labels, self.backbone.null_label)
            )
            of_step = None if crops is None else crops[next(taken)].to(x.device)
            wanted = GuidanceInputs(
                asked=torch.where(tells[order].to(x.device), labels[images], null[images]),
                labels=labels[images[: len(steered)]],
                scale=scale[steered].to(x).view(-1, 1, 1, 1),
                crops=None if of_step is None else of_step.expand(len(steered), -1, -1),
                mask=None if mask is None else mask[images[: len(steered)]],
                clip=torch.ones_like(level.noise, dtype=torch.bool)
                if self.backbone.clip_denoised and not inverting
                else None,
            )
            t = self.schedule.timesteps[index[order]].to(x.device)
            eps = guidance.noise(
                self._eps, x[order], t, level.of_rows(order), wanted, self._protected()
            )
            return eps[order.argsort()]

        return noise


class _OnUnitRange:
    """A learned similarity: the original compares (x+1)/2 unclamped, and takes 1 - d of LPIPS too."""

    def __init__(self, metric: FeatureScore):
        self.metric = metric

    def reference(self, images: Tensor) -> list[Tensor]:
        return self.metric.features((images + 1) / 2)

    def __call__(self, x: Tensor, reference: Sequence[Tensor]) -> Tensor:
        return 1 - self.metric.distance(self.metric.features((x + 1) / 2), reference)
