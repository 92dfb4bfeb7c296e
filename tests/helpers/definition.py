"""The method, written down a second time: the paper's formulas and the original's behaviour.

One image at a time, one step at a time, in float64. Shares no code with the package: of DiffGuard
it uses only the networks (diffusion UNet, first stage, classifier), on a batch of one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import log10, sqrt

import numpy as np
import piq
import torch
from torch import Tensor
from torch.nn.functional import interpolate, log_softmax, one_hot

Noise = Callable[[Tensor, int], Tensor]
"""eps(x [1, C, h, w], training timestep)."""
Logits = Callable[[Tensor], Tensor]
"""Images [1, 3, H, W] in [0, 1] -> [1, classes]."""


@dataclass
class Trace:
    """All that one image goes through.

    Attributes:
        inversion: x [1, C, h, w] after each inversion step.
        stop_index: Index of the last inversion step.
        denoising: x after each guided denoising step.
        guidance: Scaled gradient of each guided step of the pixel-space family.
        unguided: x after each unguided denoising step.
    """

    inversion: list[Tensor] = field(default_factory=list)
    stop_index: int = -1
    denoising: list[Tensor] = field(default_factory=list)
    guidance: list[Tensor] = field(default_factory=list)
    unguided: list[Tensor] = field(default_factory=list)


def at_imagenet_scale(model: Logits) -> Logits:
    """Return the classifier that normalises by ImageNet's mean and standard deviation first."""
    mean = torch.tensor([0.485, 0.456, 0.406], dtype=torch.float32).double().view(1, 3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225], dtype=torch.float32).double().view(1, 3, 1, 1)
    return lambda images: model((images - mean) / std)


# ------------------------------------------------------------ pixel space (guided diffusion)


@dataclass
class PixelSpace:
    """Settings of the pixel-space family, with the original's names and defaults.

    Attributes:
        eps: The diffusion model.
        logits: The classifier.
        steps: Number of DDIM steps.
        input_size: Side of the classifier's images.
        classifier_scale: Scale of the guidance.
        cutouts_num: Number of crops the classifier judges; -1 for the whole image.
        cutouts_size: Side of the crops once resized.
        no_x0_hat: Judge x instead of the predicted clean image.
        early_stop_steps: Number of inversion steps left out at the end.
        skip_first_steps: Number of denoising steps left out at the start.
        psnr: Threshold of adaptive early stop in dB; None to invert to the end.
        forback_skip_diff: Denoising starts this many steps from where inversion stopped.
        uncond_aux: Denoise a second time without guidance.
    """

    eps: Noise
    logits: Logits
    steps: int
    input_size: int
    classifier_scale: float
    cutouts_num: int
    cutouts_size: int
    no_x0_hat: bool = False
    early_stop_steps: int = 0
    skip_first_steps: int = 0
    psnr: float | None = None
    forback_skip_diff: int = 0
    uncond_aux: bool = False

    def __post_init__(self) -> None:
        # ddimN: every k-th of 1000 timesteps, alpha-bar of betas linear in 1e-4..0.02
        stride = next(k for k in range(1, 1001) if len(range(0, 1000, k)) == self.steps)
        alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
        self.timesteps = list(range(0, 1000, stride))
        self.a = [float(alpha_bar[t]) for t in self.timesteps]

    def run(self, image: Tensor, label: int) -> Trace:
        """Invert an image [1, 3, H, H] in [-1, 1] of the model's size and denoise it."""
        trace = Trace()
        x = self.invert(image, trace)
        if self.forback_skip_diff > 0:
            skip = max(0, self.steps - trace.stop_index - self.forback_skip_diff)
        else:
            skip = self.skip_first_steps
        indices = list(range(self.steps))[::-1][skip:]
        crops = self.crops(image.shape[-1])
        guided = unguided = x
        for i in indices:
            eps = self.eps(guided, self.timesteps[i])
            gradient = self.guidance(guided, eps, i, label, next(crops))
            guided = self.denoise(guided, eps, i, gradient)
            trace.guidance.append(gradient)
            trace.denoising.append(guided)
        for i in indices if self.uncond_aux else []:
            eps = self.eps(unguided, self.timesteps[i])
            unguided = self.denoise(unguided, eps, i, torch.zeros_like(unguided))
            trace.unguided.append(unguided)
        return trace

    def invert(self, image: Tensor, trace: Trace) -> Tensor:
        x = image
        for i in range(self.steps - self.early_stop_steps):
            a = self.a[i]
            a_next = self.a[i + 1] if i + 1 < self.steps else 0.0
            eps = self.eps(x, self.timesteps[i])
            x0 = (x - sqrt(1 - a) * eps) / sqrt(a)
            if i > 0:
                x0 = x0.clamp(-1, 1)
                eps = (x - sqrt(a) * x0) / sqrt(1 - a)
            x = sqrt(a_next) * x0 + sqrt(1 - a_next) * eps
            trace.inversion.append(x)
            trace.stop_index = i
            rmse = sqrt(float(((x - image) ** 2).mean()))
            if self.psnr is not None and 20 * log10(255 / rmse) < self.psnr:
                break
        return x

    def guidance(
        self, x: Tensor, eps: Tensor, i: int, label: int, crops: Sequence[tuple]
    ) -> Tensor:
        """g = scale * d/dx_in sum log p(label | crops of x_in)."""
        a = self.a[i]
        x0_hat = (x - sqrt(1 - a) * eps) / sqrt(a)
        fraction = sqrt(1 - a)
        x_in = x if self.no_x0_hat else fraction * x0_hat + (1 - fraction) * x
        with torch.enable_grad():
            x_in = x_in.detach().requires_grad_()
            images = (x_in + 1) / 2
            total = torch.zeros((), dtype=x.dtype)
            for left, top, side in crops:
                crop = images[:, :, top : top + side, left : left + side]
                if self.cutouts_num > 0:
                    crop = interpolate(crop, (self.cutouts_size, self.cutouts_size), mode="nearest")
                total = total + log_softmax(self.logits(crop), dim=1)[0, label]
            (gradient,) = torch.autograd.grad(total, x_in)
        return self.classifier_scale * gradient

    def denoise(self, x: Tensor, eps: Tensor, i: int, gradient: Tensor) -> Tensor:
        a = self.a[i]
        a_previous = self.a[i - 1] if i > 0 else 1.0
        x0 = ((x - sqrt(1 - a) * eps) / sqrt(a)).clamp(-1, 1)
        eps = (x - sqrt(a) * x0) / sqrt(1 - a) - sqrt(1 - a) * gradient
        x0 = (x - sqrt(1 - a) * eps) / sqrt(a)
        return sqrt(a_previous) * x0 + sqrt(1 - a_previous) * eps

    def crops(self, size: int):
        """Yield the (left, top, side) of each step's crops, in the original's order of draws."""
        generator = torch.Generator().manual_seed(100)
        smallest = min(size, self.cutouts_size)
        while True:
            if self.cutouts_num < 0:
                yield [(0, 0, size)]
                continue
            crops = []
            for _ in range(self.cutouts_num):
                draw = torch.rand([], generator=generator)
                side = int(draw * (size - smallest) + smallest)
                left = int(torch.randint(0, size - side + 1, (), generator=generator))
                top = int(torch.randint(0, size - side + 1, (), generator=generator))
                crops.append((left, top, side))
            yield crops


def resized(image: Tensor, size: int) -> Tensor:
    """Return the image at another size, bilinear and antialiased."""
    return interpolate(image, (size, size), mode="bilinear", antialias=True)


# --------------------------------------------------------- latent space (latent diffusion)


@dataclass
class LatentSpace:
    """Settings of the latent-space family.

    Attributes:
        eps: The diffusion model under a label: eps(x, timestep, label).
        alpha_bar: Signal levels [1000] of the training schedule.
        steps: Number of DDIM steps, a divisor of 1000.
        scale: Guidance scale of denoising.
        inversion_scale: Guidance scale of inversion; 0 to invert under no class.
        null: The label that means no class.
    """

    eps: Callable[[Tensor, int, int], Tensor]
    alpha_bar: Tensor
    steps: int
    scale: float
    inversion_scale: float
    null: int

    def __post_init__(self) -> None:
        self.timesteps = [t + 1 for t in range(0, 1000, 1000 // self.steps)]
        self.a = [float(self.alpha_bar[t]) for t in self.timesteps]
        self.a_previous = [float(self.alpha_bar[0]), *self.a[:-1]]

    def run(self, latent: Tensor, label: int, mask: Tensor | None) -> Trace:
        """Invert a latent [1, C, h, w] and denoise it, guided where the mask is 1."""
        trace = Trace(stop_index=self.steps - 1)
        x = latent
        for i in range(self.steps):
            eps = self.guided_eps(x, i, label, self.inversion_scale, None)
            x = self.step(x, eps, self.a_previous[i], self.a[i])
            trace.inversion.append(x)
        guided = x
        for i in reversed(range(self.steps)):
            eps = self.guided_eps(guided, i, label, self.scale, mask)
            guided = self.step(guided, eps, self.a[i], self.a_previous[i])
            trace.denoising.append(guided)
        return trace

    def guided_eps(self, x: Tensor, i: int, label: int, scale: float, mask: Tensor | None):
        of_null = self.eps(x, self.timesteps[i], self.null)
        if scale == 0:
            return of_null
        of_label = self.eps(x, self.timesteps[i], label)
        eps = of_null + scale * (of_label - of_null)
        return eps if mask is None else mask * eps + (1 - mask) * of_null

    def step(self, x: Tensor, eps: Tensor, a_from: float, a_to: float) -> Tensor:
        x0 = (x - sqrt(1 - a_from) * eps) / sqrt(a_from)
        return sqrt(a_to) * x0 + sqrt(1 - a_to) * eps


def grad_cam(features: Logits, head: Logits, image: Tensor, label: int) -> Tensor:
    """Return Grad-CAM [1, 1, H, W] of a label, scaled to [0, 1] (Selvaraju et al., eq. 1, 2)."""
    with torch.enable_grad():
        maps = features(image).detach().requires_grad_()
        (gradient,) = torch.autograd.grad(head(maps)[0, label], maps)
    weights = gradient.mean(dim=(2, 3))
    cam = torch.einsum("nk,nkhw->nhw", weights, maps.detach()).relu()[:, None]
    cam = interpolate(cam, image.shape[-2:], mode="bilinear", align_corners=False)
    return (cam - cam.min()) / (cam.max() - cam.min() + 1e-7)


def semantic_mask(cam: Tensor, cut: float, size: int) -> Tensor:
    """Return where guidance acts: 1 or 0 [1, 1, size, size]."""
    inside = cam > cut if cut > 0 else cam < abs(cut)
    stride = cam.shape[-1] // size
    return inside[:, :, ::stride, ::stride].double()


def nearest_codes(latent: Tensor, codes: Tensor) -> Tensor:
    """Return the index [n, h, w] of the nearest of the codes [K, C] at each place."""
    difference = latent.movedim(1, -1)[..., None, :] - codes
    return difference.square().sum(dim=-1).argmin(dim=-1)


def quantised(latent: Tensor, codes: Tensor) -> Tensor:
    """Return the latent [n, C, h, w] with each place moved to the nearest code."""
    chosen = one_hot(nearest_codes(latent, codes), len(codes)).to(codes)
    return (chosen @ codes).movedim(-1, 1)


# ----------------------------------------------------------------------------------- scores


def scores(a: Tensor, b: Tensor, logits: Logits) -> dict[str, float]:
    """Return the similarity of two images [1, 3, H, W] in [0, 1] by name; higher is more alike."""
    return {
        "l2": -float(((a - b) ** 2).sum().sqrt()),
        "logits": -float((logits(a) - logits(b)).abs().sum()),
        "ssim": float(piq.ssim(a, b, reduction="none")),
        "fsim": float(piq.fsim(a, b, reduction="none")),
        "gmsd": -float(piq.gmsd(a, b, reduction="none")),
        "mdsi": -float(piq.mdsi(a, b, reduction="none")),
    }
