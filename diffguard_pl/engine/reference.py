"""The method in plain loops, one stage after the other. The engine is tested against it.

All images of a batch are inverted together and then denoised together, so batches shrink when
images stop early, and take as long as their slowest image.
"""

import itertools

import torch
from torch import Tensor

from ..diffusion import ddim
from ..diffusion.ddim import Level, NoiseModel, StepCallback
from ..diffusion.guidance import GuidanceInputs, GuidedNoise
from ..diffusion.path import Path, step_statistics
from ..diffusion.sampling import GuidedSampler
from ..stages import Detection, Inversion, Prediction, Reconstruction
from .method import Method

StepCallbacks = dict[str, StepCallback]
"""Callbacks after each step of ``inversion`` and of ``denoising``."""


@torch.no_grad()
def detect(
    diffguard: Method,
    images: Tensor,
    labels: Tensor | None = None,
    watch: StepCallbacks | None = None,
) -> Detection:
    """Classify, invert, reconstruct and compare.

    Args:
        diffguard: DiffGuard.
        images: [N, 3, H, W] in [0, 1].
        labels: [N] oracle labels. Negative ones, or None, stand for the predicted class.
        watch: Callbacks after each step of ``inversion`` and of ``denoising``.
    """
    watch = watch or {}

    # 1. Classify: the label y to reconstruct under.
    prediction = diffguard.classify(images, labels)

    # 2. Invert: image to noise.
    inversion = invert(diffguard, images, prediction, watch.get("inversion"))

    # 3. Reconstruct: noise to image under y.
    reconstruction = None
    if diffguard.sampling.reconstructs:
        reconstruction = reconstruct(diffguard, inversion, prediction, watch.get("denoising"))

    # 4. Compare: the similarity is the score.
    return diffguard.detection(
        images, prediction, inversion.stop_index, reconstruction, path=inversion.path
    )


@torch.no_grad()
def invert(
    diffguard: Method,
    images: Tensor,
    prediction: Prediction,
    callback: StepCallback | None = None,
) -> Inversion:
    """Invert images [N, 3, H, W] in [0, 1] to noise."""
    sampler, x = diffguard.sampler(), diffguard.encode(images)

    # Adaptive early stop compares each state to its image.
    stop = None
    if sampler.early_stop:
        early_stop = sampler.early_stop
        reference = early_stop.reference(x)

        def stop(x: Tensor, batch_index: Tensor) -> Tensor:
            return early_stop.should_stop(x, [tensor[batch_index] for tensor in reference])

    path = None
    if sampler.settings.path_steps:
        path = Path.empty(x, len(sampler.settings.schedule))
    noise, stop_index = ddim.invert(
        _noise_model(sampler, prediction.labels, x, inverting=True, path=path),
        x,
        sampler.settings.schedule,
        sampler.settings.inversion_steps,
        stop,
        callback,
    )
    return Inversion(noise, stop_index, path)


@torch.no_grad()
def reconstruct(
    diffguard: Method,
    inversion: Inversion,
    prediction: Prediction,
    callback: StepCallback | None = None,
) -> Reconstruction:
    """Denoise to images under their labels and, where the settings ask for it, without guidance.

    The rows of the unguided reconstructions come behind the N guided ones, in the same batch.
    """
    # The unguided reconstructions start from the same noise.
    sampler = diffguard.sampler()
    x, stop_index = inversion.noise, inversion.stop_index
    if sampler.settings.with_unguided:
        x, stop_index = torch.cat([x, x]), torch.cat([stop_index, stop_index])

    # Distinct semantic guidance: where the classifier looks.
    mask = diffguard.latent_mask(prediction, x)
    x = ddim.denoise(
        _noise_model(sampler, prediction.labels, x, False, mask, inversion.path),
        x,
        sampler.settings.schedule,
        sampler.settings.first_denoising_index(stop_index),
        callback,
        sampler.settings.skip_last_steps,
    )
    return diffguard.decode(x)


def _noise_model(
    sampler: GuidedSampler,
    labels: Tensor,
    x: Tensor,
    inverting: bool,
    mask: Tensor | None = None,
    path: Path | None = None,
) -> NoiseModel:
    """Return the guided noise prediction for rows of x: N images, and N unguided ones behind them.

    Args:
        sampler: Diffusion model, guidance and settings.
        labels: [N] classes to reconstruct under.
        x: [N, C, h, w] or [2N, C, h, w] states.
        inverting: Whether it is for inversion; else for denoising.
        mask: bool [N, 1, h, w], True where guidance acts. None: everywhere.
        path: Statistics of the N images, to be written to.
    """
    guidance, schedule, count = sampler.guidance, sampler.settings.schedule, len(labels)
    scales = sampler.inversion_scales() if inverting else sampler.denoising_scales()
    null_labels = sampler.null_labels(labels)
    crops = guidance.crops(len(schedule), x.shape[-1])
    calls = itertools.count()
    guided_inversion_steps = sampler.guided_inversion_steps()
    previous = torch.full_like(x[:count], torch.nan)

    def noise(x: Tensor, index: Tensor, level: Level, batch_index: Tensor) -> Tensor:
        # Rows behind the first N are unguided.
        scale = torch.where(batch_index < count, scales[index], 0.0)
        masked = mask is not None
        is_guided = guidance.is_guided(scale, masked)
        if inverting:
            is_guided = guided_inversion_steps[index]
        conditional = guidance.needs_single_call(scale, masked) & ~is_guided

        # Guided rows go first.
        order = is_guided.argsort(descending=True, stable=True)
        images = batch_index[order] % count
        guided, guided_images = (part[: int(is_guided.sum())] for part in (order, images))

        # All rows are at their k-th denoising step, and see the k-th crops.
        k = next(calls)
        step_crops = None if crops is None else crops[k].to(x.device)

        # All steps clamp x0hat, except the first of inversion.
        clip = None
        if sampler.clip_denoised:
            clamped = (index > 0) | (not inverting)
            clip = clamped[order].to(x.device).view(-1, 1, 1, 1)

        inputs = GuidanceInputs(
            network_labels=torch.where(
                conditional[order].to(x.device), labels[images], null_labels[images]
            ),
            labels=labels[guided_images],
            scale=scale[guided].to(x).view(-1, 1, 1, 1),
            crops=None if step_crops is None else step_crops.expand(len(guided), -1, -1),
            mask=None if mask is None else mask[guided_images],
            clip=clip,
        )
        # Predict, and bring the rows back to their order.
        predicted = guidance.predict_eps(
            sampler.network,
            x[order],
            schedule.timesteps[index[order]].to(x.device),
            level.select(order),
            inputs,
            sampler.classifier,
        )
        eps = predicted.eps[order.argsort()]
        if path is not None:
            record(predicted, eps, index, batch_index, order)
        return eps

    def record(
        predicted: GuidedNoise, eps: Tensor, index: Tensor, batch_index: Tensor, order: Tensor
    ) -> None:
        """Write statistics of the step to the paths of the N images."""
        assert path is not None
        before = previous[batch_index[order] % count]
        values = step_statistics(predicted.eps, before, predicted)[order.argsort()]

        # Not those of the unguided reconstructions.
        own = batch_index < count
        rows = index[own] if inverting else len(schedule) + index[own]
        path.values[batch_index[own], rows] = values[own]
        previous[batch_index[own]] = eps[own]

    return noise
