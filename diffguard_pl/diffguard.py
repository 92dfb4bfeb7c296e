"""DiffGuard in plain PyTorch (Gao et al., ICCV 2023, arXiv 2308.07687).

The method has four stages: classify an image, invert it to noise, reconstruct it from that noise
under the predicted label, and compare. An in-distribution image comes back nearly unchanged; an
out-of-distribution image comes back as something else, a semantic mismatch.

Its formulas are in :mod:`.diffusion`, one file each: the DDIM step, clean-gradient guidance and
adaptive early stop (section 3.2.1), and classifier-free guidance with distinct semantic guidance
(section 3.2.2). :mod:`.engine.reference` runs the stages in plain loops, one after the other;
:mod:`.engine.engine` does the same in full batches.

    diffguard = diffguard_pl.load("digits_ldm")
    detection = diffguard(images)                # [N, 3, 16, 16] in [0, 1]
    detection.labels, detection.reconstructions, detection.scores["features"]
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from .backbones import Backbone
from .backbones.class_map import ClassMap, check_without_map
from .classifiers.classifier import Classifier
from .diffusion.ddim import StepCallback
from .diffusion.denoiser import Denoiser
from .diffusion.early_stop import PSNR, EarlyStop, LearnedSimilarity, Similarity
from .diffusion.guidance import Guidance, GuidingClassifier
from .diffusion.path import Path
from .diffusion.sampling import GuidedSampler, SamplingSettings
from .diffusion.schedule import Schedule
from .dtypes import at_least_float32
from .engine import reference
from .engine.paths import paths
from .engine.stream import Stream
from .errors import InputError
from .layout import keep_contiguous
from .scores.baselines.collection import Baselines
from .scores.baselines.names import DEFAULT_BASELINES
from .scores.baselines.second_network import SecondNetwork
from .scores.baselines.zero_shot import ZeroShot
from .scores.combination import Cascade
from .scores.discrepancies import Discrepancies, Seen
from .scores.path.base import Subject
from .scores.path.collection import PathScores
from .scores.piq_scores import FeatureScore, SharedVGG16
from .scores.training_features import features_of_networks
from .stages import (
    Detection,
    Gates,
    Inversion,
    PathGate,
    Prediction,
    Reconstruction,
    as_batch,
)


class DiffGuard(nn.Module):
    """Diffusion-based out-of-distribution detection for a classifier.

    Args:
        classifier: Classifier under protection.
        backbone: Diffusion model.
        guidance: Guidance of the reconstruction towards the label.
        steps: Number of DDIM steps. Ignored where ``timestep_respacing`` is set.
        discrepancies: Discrepancies to compare by: names, or import paths of your own. The
            first is the primary score.
        compare_to: Reference of the comparison: ``input``, or ``unguided`` for a second
            reconstruction without guidance (the original's ``uncond_aux``). ``none``: do not
            reconstruct; only path scores and baselines are computed.
        early_stop_steps: Number of last inversion steps to skip.
        skip_first_steps: Number of first denoising steps to skip. Ignored where
            ``forback_skip_diff`` is set.
        skip_last_steps: Number of the last denoising steps to skip, which remove little noise.
        early_stop: Adaptive early stop: stop inverting an image when a similarity to the input
            falls below its threshold. Any of psnr (in dB on the original's scale), dists and lpips
            (both 1 - distance). Defaults to none.
        forback_skip_diff: Offset d of the first denoising step: its index is that of the last
            inversion step + d - 1. 0: denoising starts at the top of the schedule.
        timestep_respacing: Training steps to visit, in guided-diffusion's notation: ``ddimN``, or
            numbers of steps in equal sections of the training schedule, such as ``250`` or
            ``10,15,20``. Defaults to none: ``steps`` decides.
        slots: Batch size of the diffusion model, which is filled from successive batches of images.
            Scores depend on it by rounding only.
        compile: Whether to compile the diffusion model (``torch.compile``) for batches of
            ``slots``; pays off in long runs.
        baselines: Scores of the classifier alone, from its pass in stage 1 (odin needs two more):
            names of :data:`~diffguard_pl.scores.baselines.names.BASELINES`, or settings by name,
            such as ``{knn: {K: 50}}``.
        path_scores: Scores of the noise that the diffusion model predicts on the way: names of
            :data:`~diffguard_pl.scores.path.names.PATH_SCORES`, or settings by name, such as
            ``{label_pull: {times: [0.1, 0.3]}}``. Some are fitted, see :meth:`fit_path_scores`.
        path_fit_images: Number of training images, evenly spaced, that path scores are fitted to.
        second_network: Network beside the classifier whose features are scored, such as a
            self-supervised vision transformer. Defaults to none.
        zero_shot: Text-image model that knows the names of the classes (CLIP). Defaults to none.
        class_map: Class of the diffusion model for each class of the classifier, where they differ:
            a list of numbers or names, null where there is no counterpart; ``names`` for the class
            of the same name; a dict such as ``{airplane: airliner, deer: null}`` for classes of
            other names; or ``imagenet200`` for OpenOOD's ImageNet-200 and a model of ImageNet's
            1,000 classes. Images whose label has no counterpart are not diffused: their scores are
            NaN. Defaults to none: equal classes. An unconditional model needs none, because
            classifier guidance uses the classifier's own classes.

    Attributes:
        sampling: Settings of the DDIM steps.
        nfe: Network evaluations (NFE) of the diffusion model so far.
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
        timestep_respacing: str | int | None = None,
        slots: int = 64,
        compile: bool = False,
        baselines: Sequence[str]
        | Mapping[str, Mapping[str, int | float | str] | None] = DEFAULT_BASELINES,
        path_scores: Sequence[str]
        | Mapping[str, Mapping[str, int | float | str | list[float]] | None] = (),
        path_fit_images: int = 1000,
        second_network: SecondNetwork | None = None,
        zero_shot: ZeroShot | None = None,
        class_map: list[int | str | None] | dict[str | int, int | str | None] | str | None = None,
    ):
        super().__init__()
        backbone.use_classes(classifier.class_names, classifier.num_classes)
        _check_compatible(classifier, backbone, guidance)
        self.class_map: ClassMap | None = None
        if class_map is None:
            check_without_map(classifier.num_classes, backbone)
        else:
            self.class_map = ClassMap(
                class_map, classifier.num_classes, backbone, classifier.class_names
            )
        self.classifier, self.backbone, self.guidance = classifier, backbone, guidance
        if timestep_respacing is None:
            schedule = backbone.schedule(steps)
        else:
            schedule = backbone.respaced_schedule(timestep_respacing)
        sampling = SamplingSettings(
            schedule=schedule,
            compare_to=compare_to,
            early_stop_steps=early_stop_steps,
            skip_first_steps=skip_first_steps,
            skip_last_steps=skip_last_steps,
            early_stop=early_stop or {},
            forback_skip_diff=forback_skip_diff,
        )
        self.path_scores = PathScores(
            path_scores,
            schedule.timesteps,
            len(schedule) - early_stop_steps,
            len(backbone.alpha_bar),
        )
        self.path_scores.check_labels(self._null_label, backbone.num_classes is not None)
        if path_fit_images < 1:
            raise InputError(f"path_fit_images={path_fit_images}: must be at least 1 image")
        self.path_fit_images = path_fit_images
        self.sampling = replace(
            sampling,
            path_steps=self.path_scores.path_steps,
            pull_steps=self.path_scores.pull_steps,
        )
        if early_stop and not backbone.is_pixel_space:
            raise InputError(
                f"early_stop: does not support {type(backbone).__name__}, which diffuses latents; "
                "use early_stop_steps"
            )
        guidance.check_interval(self.schedule.timesteps, len(backbone.alpha_bar))
        if slots < guidance.nfe_per_step:
            raise InputError(
                f"slots={slots}: must be at least {guidance.nfe_per_step}, the network evaluations "
                "of a guided step"
            )

        # Scores: discrepancies of stage 4, and baselines from the classifier's pass of stage 1.
        # One VGG-16 serves DISTS and LPIPS, as scores and for early stop.
        vgg16 = SharedVGG16()
        self.discrepancies = Discrepancies(discrepancies, vgg16)
        self.baselines = Baselines(baselines, classifier)
        self.second_network, self.zero_shot = second_network, zero_shot
        if zero_shot is not None:
            zero_shot.use_classes(classifier.class_names, classifier.num_classes)
        if second_network is not None:
            second_network.use_classes(classifier.num_classes)
        self._check_scores()
        self.stop_metrics = nn.ModuleDict()
        for name in self.sampling.early_stop:
            if name != "psnr":
                self.stop_metrics[name] = FeatureScore(name, vgg16)

        if self.path_scores.look_at_denoising:
            guided = self.sampler().guided_denoising_steps()
            self.path_scores.check_denoising(guided, schedule.timesteps, len(backbone.alpha_bar))

        # backbones and discrepancies of your own, too
        keep_contiguous(self)
        self.slots, self.compiled, self.nfe = slots, compile, 0
        if compile:
            backbone.compile_blocks()

    def _check_scores(self) -> None:
        """Raise an `InputError` where scores share a name, or do not fit ``compare_to``."""
        names = self.score_names
        if shared := {name for name in names if names.count(name) > 1}:
            raise InputError(
                f"discrepancies, path_scores, baselines: {min(shared)!r} is the name of two "
                "scores; rename one"
            )
        if self.sampling.reconstructs:
            if not self.discrepancies.names:
                raise InputError(
                    "discrepancies: must be one or more names; or set compare_to to none"
                )
            return
        if self.discrepancies.names or self.path_scores.look_at_denoising:
            raise InputError(
                "compare_to=none: images are not reconstructed; set discrepancies to [], and at "
                "to inversion for path scores, or compare_to to input"
            )
        if not self.path_scores.names:
            raise InputError(
                "compare_to=none: needs path_scores, such as [label_pull]; or set compare_to to "
                "input"
            )

    @torch.no_grad()
    def forward(self, images: Tensor, labels: Tensor | None = None) -> Detection:
        """Run all four stages.

        Args:
            images: [N, 3, H, W] in [0, 1].
            labels: [N] oracle labels. Negative ones, or None, stand for the predicted class.

        Raises:
            InputError: The images have the wrong shape or range, or contain NaN.
        """
        # The stream calls the stages below, with full batches of the diffusion model.
        stream = self.stream()
        ((_, detection),) = [*stream.push(images, labels), *stream.drain()]
        return detection

    def stream(self, before_pass: Callable[[], None] = lambda: None) -> Stream:
        """Return a stream for many batches, which fills the diffusion model's batch across them.

        Args:
            before_pass: Called before each pass of the diffusion model.
        """
        self.eval()  # the caller may have put the classifier in training mode
        return Stream(self, before_pass)

    # ------------------------------------------------------------------------ the four stages

    def classify(self, images: Tensor, labels: Tensor | None = None) -> Prediction:
        """Stage 1: predict the labels to reconstruct under.

        Args:
            images: [N, 3, H, W] in [0, 1].
            labels: [N] oracle labels. Negative ones, or None, stand for the predicted class.

        Returns:
            Labels, the classifier's view, baseline scores and, if the guidance uses it, Grad-CAM.
        """
        self.check(images)
        if labels is not None and (labels >= self.classifier.num_classes).any():
            raise InputError(
                f"labels: must be below {self.classifier.num_classes}, the number of classes; "
                f"found {int(labels.max())}"
            )

        # One pass of the classifier gives logits, features, feature maps and Grad-CAM.
        cam = None
        if self.guidance.cam_cut is None:
            view = self.classifier.view(images)
        else:
            view, cam = self.classifier.view_with_cam(images, labels)

        # Oracle labels replace predicted ones.
        predicted = view.logits.argmax(dim=1)
        chosen = predicted if labels is None else torch.where(labels < 0, predicted, labels)
        scores = self.baselines(view, images)
        for network in self.other_networks.values():
            scores |= network(images)
        return Prediction(view, predicted, chosen, cam, scores)

    def invert(
        self, images: Tensor, prediction: Prediction, callback: StepCallback | None = None
    ) -> Inversion:
        """Stage 2: invert images to noise with DDIM, each until it stops.

        :meth:`forward` does the same in full batches of the diffusion model.

        Args:
            images: [N, 3, H, W] in [0, 1].
            prediction: Result of stage 1.
            callback: Called after each step.
        """
        return reference.invert(self, images, prediction, callback)

    def reconstruct(
        self, inversion: Inversion, prediction: Prediction, callback: StepCallback | None = None
    ) -> Reconstruction:
        """Stage 3: denoise with DDIM under the label.

        With ``compare_to: unguided``, images are also denoised without guidance.

        :meth:`forward` does the same in full batches of the diffusion model.

        Args:
            inversion: Result of stage 2.
            prediction: Result of stage 1.
            callback: Called after each step.
        """
        return reference.reconstruct(self, inversion, prediction, callback)

    def compare(
        self,
        images: Tensor,
        prediction: Prediction,
        reconstruction: Reconstruction,
        latents: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Stage 4: compare the reconstruction with the input, or with the unguided reconstruction.

        Args:
            images: [N, 3, H, W] in [0, 1].
            prediction: Result of stage 1.
            reconstruction: Result of stage 3.
            latents: [N, C, h, w] the encoded images. Computed if a discrepancy needs them.

        Returns:
            The discrepancies [N] by name, higher = more alike = more in-distribution; NaN where the
            classifier's logits are NaN, since an image without a label cannot be judged.
        """
        # Reference of the comparison. The classifier has seen the input in stage 1.
        target, target_view = images, prediction.view
        if reconstruction.unguided is not None:
            target, latents = reconstruction.unguided, reconstruction.unguided_latents
            if self.discrepancies.needs_classifier:
                target_view = self.classifier.view(target)

        # The guided reconstruction; its view is not used unless a discrepancy needs it.
        guided_view = target_view
        if self.discrepancies.needs_classifier:
            guided_view = self.classifier.view(reconstruction.guided)
        if latents is None and self.discrepancies.needs_latents:
            latents = self.encode(images)
        scores = self.discrepancies(
            Seen.of(target, target_view, latents),
            Seen.of(reconstruction.guided, guided_view, reconstruction.latents),
        )
        return self._of_known_labels(scores, prediction)

    def detection(
        self,
        images: Tensor,
        prediction: Prediction,
        stop_index: Tensor,
        reconstruction: Reconstruction | None = None,
        path: Path | None = None,
        measured: Mapping[str, Tensor] | None = None,
    ) -> Detection:
        """Run stage 4 and return all results; see :meth:`compare`.

        Args:
            images: [N, 3, H, W] in [0, 1].
            prediction: Result of stage 1.
            stop_index: [N] schedule index at which inversion stopped.
            reconstruction: Result of stage 3. None: without discrepancies.
            path: Statistics of the steps. None if no path score looks at them.
            measured: Result of :meth:`measure`. Computed if it is not given.
        """
        scores: dict[str, Tensor] = {}
        if reconstruction is not None:
            scores |= self.compare(images, prediction, reconstruction)
        if self.path_scores.names:
            if measured is None:
                measured = self.measure(images, self.encode(images), prediction.labels)
            scores |= self._of_known_labels(self.path_scores(path, measured), prediction)
        return Detection(
            labels=prediction.labels,
            reconstructions=None if reconstruction is None else reconstruction.guided,
            scores=scores | prediction.baselines,
            prediction=prediction,
            stop_index=stop_index,
            unguided=None if reconstruction is None else reconstruction.unguided,
            path=path,
        )

    def measure(
        self,
        images: Tensor,
        x: Tensor,
        labels: Tensor,
        names: Collection[str] | None = None,
    ) -> dict[str, Tensor]:
        """Run the path scores that evaluate the diffusion model on their own.

        Args:
            images: [N, 3, H, W] in [0, 1].
            x: [N, C, h, w] the encoded images.
            labels: [N] classes to reconstruct under.
            names: Names of the scores. Defaults to all.

        Returns:
            Features [N, F] by name of the score.
        """
        denoiser = Denoiser(
            network=self._evaluate_network,
            alpha_bar=self.backbone.alpha_bar,
            null_label=self._null_label,
            clip_denoised=self.backbone.clip_denoised,
            batch=self.slots,
        )
        subject = Subject(
            images, x, labels, denoiser, self.backbone, self.classifier, self.decode_images
        )
        return self.path_scores.measure(subject, self.path_scores.names if names is None else names)

    # ------------------------------------------------------------------- what the stages need

    def encode(self, images: Tensor) -> Tensor:
        """Return x [N, C, h, w], the pixels or latents to diffuse.

        Args:
            images: [N, 3, H, W] in [0, 1].
        """
        dtype = torch.promote_types(self.backbone.dtype, torch.float32)
        return self.backbone.encode(images * 2 - 1).to(dtype).contiguous()

    def decode_images(self, x: Tensor) -> Tensor:
        """Return the images [N, 3, H, W] in [0, 1] of x [N, C, h, w]."""
        images = at_least_float32(self.backbone.decode(x)).contiguous()
        return ((images + 1) / 2).clamp(0, 1)

    def decode(self, x: Tensor) -> Reconstruction:
        """Return the images of x [N, C, h, w], or [2N, C, h, w] with the unguided ones last."""
        images = self.decode_images(x)
        if not self.sampling.with_unguided:
            return Reconstruction(images, None, x)
        count = len(images) // 2
        return Reconstruction(images[:count], images[count:], x[:count], x[count:])

    def mask(self, prediction: Prediction) -> Tensor | None:
        """Return where distinct semantic guidance acts, bool [N, 1, H, W]. None: everywhere."""
        cam, cut = prediction.cam, self.guidance.cam_cut
        if cut is None or cam is None:
            return None
        return cam > cut if cut >= 0 else cam < -cut

    def has_counterpart(self, prediction: Prediction) -> Tensor | None:
        """Return which labels have a counterpart in the diffusion model, bool [N]. None: all."""
        if self.class_map is None or not self.class_map.without_counterpart:
            return None
        return self.class_map.has_counterpart[prediction.labels]

    def _of_known_labels(
        self, scores: dict[str, Tensor], prediction: Prediction
    ) -> dict[str, Tensor]:
        """Return scores [N] that are NaN where an image has no label that it could be judged by.

        That is where the classifier's logits are NaN, or the diffusion model lacks the class.
        """
        unlabelled = prediction.view.logits.isnan().any(dim=1)
        known = self.has_counterpart(prediction)
        if known is not None:
            unlabelled = unlabelled | ~known
        return {
            name: values.masked_fill(unlabelled, float("nan")) for name, values in scores.items()
        }

    def latent_mask(self, prediction: Prediction, x: Tensor) -> Tensor | None:
        """Return :meth:`mask` at the size of x [N, C, h, w], bool [N, 1, h, w]."""
        mask = self.mask(prediction)
        if mask is None:
            return None
        return nn.functional.interpolate(mask.float(), x.shape[-2:]) > 0.5

    def sampler(self) -> GuidedSampler:
        """Return the diffusion model with its guidance and settings."""
        return GuidedSampler(
            network=self._evaluate_network,
            guidance=self.guidance,
            classifier=GuidingClassifier(
                self.classifier.logits_at_any_size, self.classifier.input_size
            ),
            settings=self.sampling,
            train_steps=len(self.backbone.alpha_bar),
            null_label=self._null_label,
            clip_denoised=self.backbone.clip_denoised,
            early_stop=self._early_stop(),
        )

    @property
    def _null_label(self) -> int | None:
        """Label of the classifier that means "no class" to the diffusion model, if it has one."""
        return (self.class_map or self.backbone).null_label

    def _early_stop(self) -> EarlyStop | None:
        if not (self.sampling.early_stop and self.sampling.reconstructs):
            return None
        similarities: dict[str, Similarity] = {"psnr": PSNR()}
        for name, metric in self.stop_metrics.items():
            assert isinstance(metric, FeatureScore)
            similarities[name] = LearnedSimilarity(metric)
        return EarlyStop(self.sampling.early_stop, similarities, self.backbone.remove_padding)

    def _evaluate_network(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """Return eps of x [n, C, h, w] at timesteps t [n] under labels [n] of the classifier."""
        self.nfe += len(x)
        if self.class_map is not None:
            labels = self.class_map(labels)
        if not self.compiled:
            return at_least_float32(self.backbone.eps(x, t, labels))

        # A compiled network takes batches of one size.
        parts = zip(x.split(self.slots), t.split(self.slots), labels.split(self.slots), strict=True)
        return torch.cat([self._evaluate_full_batch(*part) for part in parts])

    def _evaluate_full_batch(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """Return eps; pads to the fixed batch size of a compiled network with the first row."""
        n, missing = len(x), self.slots - len(x)
        if missing:
            x, t, labels = (
                torch.cat([part, part[:1].expand(missing, *part.shape[1:])])
                for part in (x, t, labels)
            )
        return at_least_float32(self.backbone.eps(x, t, labels)[:n])

    # ----------------------------------------------------------------- settings and baselines

    @property
    def score_names(self) -> list[str]:
        """Names of discrepancies, path scores and baselines; the primary score is the first."""
        return self.diffusion_score_names + self.baseline_names

    @property
    def baseline_names(self) -> list[str]:
        """Names of the scores without the diffusion model: of the classifier, and of others."""
        names = list(self.baselines.names)
        for network in self.other_networks.values():
            names += network.names
        return names

    @property
    def other_networks(self) -> dict[str, SecondNetwork | ZeroShot]:
        """Networks beside the classifier that give scores, by the setting that names them."""
        networks = {"second_network": self.second_network, "zero_shot": self.zero_shot}
        return {name: network for name, network in networks.items() if network is not None}

    @property
    def diffusion_score_names(self) -> list[str]:
        """Names of discrepancies and path scores, which the diffusion model gives."""
        return self.discrepancies.names + self.path_scores.names

    def score_costs(self) -> dict[str, dict[str, Any]]:
        """Return what each score costs, by name.

        Returns:
            ``family`` (discrepancy, path score, baseline), ``nfe`` (network evaluations of an image
            if it were computed alone; None where it needs the whole reconstruction) and ``fitted``
            (whether it is fitted to in-distribution images).
        """
        costs: dict[str, dict[str, Any]] = {}
        for name in self.discrepancies.names:
            costs[name] = {"family": "discrepancy", "nfe": None, "fitted": False}
        for name, fitted in self.path_scores.fits.items():
            nfe = self.path_scores.nfe_of(name, self._nfe_per_pull)
            costs[name] = {"family": "path score", "nfe": nfe, "fitted": fitted}
        fits = self.baselines.fits
        for network in self.other_networks.values():
            fits |= network.fits
        for name, fitted in fits.items():
            costs[name] = {"family": "baseline", "nfe": 0, "fitted": fitted}
        return costs

    @property
    def nfe_of_path_scores(self) -> int:
        """Network evaluations of each image that only path scores need."""
        return self.path_scores.nfe + self._nfe_per_pull * len(self.path_scores.pull_steps)

    @property
    def _nfe_per_pull(self) -> int:
        """Network evaluations more of an inversion step at which the label's pull is measured."""
        return self.guidance.nfe_per_step - 1

    @property
    def input_size(self) -> int:
        """Side of the images that the model takes, in pixels."""
        return self.backbone.input_size

    @property
    def schedule(self) -> Schedule:
        """Timesteps and signal levels of the DDIM steps."""
        return self.sampling.schedule

    @property
    def own_nfe(self) -> int:
        """Network evaluations of each image that path scores make on their own."""
        return self.path_scores.nfe

    @property
    def compares_input_maps(self) -> bool:
        """Whether a discrepancy compares feature maps of the inputs."""
        return self.discrepancies.needs_maps and not self.sampling.with_unguided

    def fit_baselines(self, loader: Iterable[Any]) -> None:
        """Fit the baselines that need it to the features of in-distribution training images.

        Args:
            loader: Batches of (image, label), or dicts with these keys; images [N, 3, H, W] in
                [0, 1].
        """
        self.eval()
        parts = [(self.baselines, self.classifier)]
        if (second := self.second_network) is not None:
            parts.append((second.baselines, cast(Classifier, second.as_classifier)))
        parts = [part for part in parts if part[0].needs_fit]
        if not parts:
            return
        found = features_of_networks([network for _, network in parts], loader)
        for (baselines, _), features in zip(parts, found, strict=True):
            baselines.fit_features(*features)

    def fit_path_scores(self, loader: Iterable[Any]) -> None:
        """Fit the path scores that need it to the paths of in-distribution images.

        The first ``path_fit_images`` of them are used, in whole batches.

        Args:
            loader: Batches of images [N, 3, H, W] in [0, 1], pairs (image, label), or dicts with
                the key ``image``.
        """
        if self.path_scores.needs_fit:
            self.path_scores.fit_features(self.path_features(loader))

    def early_scores(self, name: str, batches: Iterable[Tensor]) -> Tensor:
        """Return a path score [N] of images that are only inverted as far as path scores look.

        Args:
            name: Name of a path score that is known after a few inversion steps.
            batches: Images [n, 3, H, W] in [0, 1].
        """
        scores = []
        for path, _, known in paths(self, batches, denoise=False, measured=()):
            if path is not None:
                score = self.path_scores.early_score(name, path)
                scores.append(score if known is None else score.masked_fill(~known, float("nan")))
        return torch.cat(scores)

    def gates(self, cascade: Cascade, reference: Mapping[str, np.ndarray]) -> Gates:
        """Return the gates of a cascade that is calibrated on validation images.

        Args:
            cascade: The cascade.
            reference: Scores [n] of the validation images by name.
        """
        diffuses, decide = cascade.gate(reference[cascade.baseline]), cascade.path_gate(reference)
        if decide is None:
            return Gates(diffuses)
        middle, undecided = str(cascade.middle), decide

        def reconstructs(path: Path) -> Tensor:
            return undecided(self.path_scores.early_score(middle, path)).to(path.values.device)

        return Gates(diffuses, PathGate(reconstructs, self.path_scores.path_steps_of(middle)))

    def path_features(self, loader: Iterable[Any]) -> dict[str, Tensor]:
        """Return the features [N, F] of each path score that is fitted, by name.

        See :meth:`fit_path_scores`.
        """
        self.eval()
        device = self.classifier.mean.device

        def images() -> Iterator[Tensor]:
            count = 0
            for given in loader:
                batch = as_batch(given, "image")["image"]
                if len(batch):
                    yield batch.to(device)
                count += len(batch)
                if count >= self.path_fit_images:
                    return

        scores = self.path_scores
        names = [name for name, fitted in scores.fits.items() if fitted]
        found: dict[str, list[Tensor]] = {name: [] for name in names}
        for path, measured, known in paths(self, images(), scores.fit_looks_at_denoising, names):
            for name, features in scores.features(path, measured, names).items():
                found[name].append((features if known is None else features[known]).cpu())
        if not all(found.values()):
            raise InputError("path_scores: no images to fit to; set data.train to some")
        return {name: torch.cat(parts) for name, parts in found.items()}

    def train(self, mode: bool = True) -> "DiffGuard":
        """Stay in evaluation mode: no part of DiffGuard is ever trained."""
        return super().train(False)

    def networks_to(self, dtype: torch.dtype) -> None:
        """Convert classifier and diffusion model to another precision, such as ``torch.bfloat16``.

        Schedule, states, guidance and discrepancies stay in float32. For mixed precision use
        ``torch.autocast``, for float64 from end to end :meth:`double` and float64 images.
        """
        self.classifier.networks_to(dtype)
        if self.second_network is not None:
            self.second_network.networks_to(dtype)
        self.backbone.networks_to(dtype)

    def check(self, images: Tensor) -> None:
        """Raise an `InputError` unless images are [N, 3, input_size, input_size] in [0, 1]."""
        expected = f"must be a tensor [N, 3, {self.input_size}, {self.input_size}] in [0, 1]"
        if not isinstance(images, Tensor):
            raise InputError(f"images: {expected}; got a {type(images).__name__}")
        size = (3, self.input_size, self.input_size)
        if images.ndim != 4 or tuple(images.shape[1:]) != size or len(images) == 0:
            raise InputError(f"images: {expected}; got {list(images.shape)}")
        if not images.is_floating_point():
            raise InputError(f"images: {expected}; got {images.dtype}, convert to floating point")
        bad = ~((images >= 0) & (images <= 1)).all(dim=(1, 2, 3))
        if bad.any():
            i = int(bad.nonzero()[0])
            found = f"values from {images[i].min():.3g} to {images[i].max():.3g}"
            if images[i].isnan().any():
                found = "NaN"
            raise InputError(f"images: {expected}; image {i} of the batch has {found}")


def _check_compatible(classifier: Classifier, backbone: Backbone, guidance: Guidance) -> None:
    """Raise an `InputError` unless classifier, diffusion model and guidance fit together."""
    backbone_name, guidance_name = type(backbone).__name__, type(guidance).__name__
    if not hasattr(backbone, "alpha_bar"):
        raise InputError(
            f"backbone: {backbone_name} has no alpha_bar; set it to the signal level [T] of its "
            "training schedule"
        )
    if guidance.needs_null_label and backbone.null_label is None:
        raise InputError(
            f"guidance: {guidance_name} does not support {backbone_name}, which has no label for "
            "'no class'; use ClassifierGuidance or a class-conditional model that has one"
        )
    if guidance.needs_pixels and not backbone.is_pixel_space:
        raise InputError(
            f"guidance: {guidance_name} does not support {backbone_name}, which diffuses latents; "
            "use ClassifierFreeGuidance"
        )
