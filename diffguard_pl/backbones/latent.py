"""Latent-space backbone: CompVis latent-diffusion, class-conditional, with a VQ first stage."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..checkpoints.architectures import LatentDiffusionArchitecture
from ..checkpoints.converted import converted_or_original, known_architecture
from ..diffusion.schedule import Schedule, latent_alpha_bar, quadratic, uniform
from ..dtypes import at_least_float32
from ..errors import choose
from .base import Backbone
from .convert_latent_diffusion import build_first_stage, build_latent_unet, load_latent_diffusion
from .load import (
    RANDOM,
    image_side,
    load_class_embedding,
    load_diffusers,
    with_random_weights,
)

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel, VQModel


DISTANCES_AT_ONCE = 2**26
"""Number of distances between latents and codes that are in memory at once, 256 MB."""
DISCRETIZATIONS = {"uniform": uniform, "quad": quadratic}
"""Functions of alpha-bar and the number of steps, by latent-diffusion's name."""


class LatentDiffusion(Backbone):
    """A UNet on VQ latents (latent-diffusion; Rombach et al. 2022), hosted in diffusers' modules.

    Args:
        checkpoint: A CompVis ``.ckpt``; a folder with ``unet/`` and ``vqvae/`` (each as written by
            ``save_pretrained``) and ``class_embedding/model.safetensors``; a name or a URL (see
            :func:`diffguard_pl.checkpoints.registry.resolve`); or ``random`` for a dry run with
            random weights. A converted copy (``diffguard-pl checkpoints convert``) is used instead
            of its file.
        architecture: CompVis' settings of a ``.ckpt``. Defaults to those of the named weights, else
            to those of ``cin256-v2``. A folder describes its own architecture, except for
            the noise schedule (a converted copy describes that, too).
        input_size: Side, in pixels, of the images under test. Defaults to the model's own size.
        process_method: How images get to the model's size: ``resize`` or ``pad``.
        ddim_discretize: Distances of the timesteps: ``uniform``, or ``quad`` for short ones near
            the image (latent-diffusion's names).
        antialias: Whether resizing is antialiased. Defaults to True; in the paper's environment
            (torchvision 0.11.3) it is not.
    """

    def __init__(
        self,
        checkpoint: str,
        architecture: LatentDiffusionArchitecture | None = None,
        input_size: int | None = None,
        process_method: str = "pad",
        ddim_discretize: str = "uniform",
        antialias: bool = True,
    ):
        a = architecture or known_architecture(checkpoint, LatentDiffusionArchitecture)
        a = a or LatentDiffusionArchitecture()
        choose("ddim_discretize", ddim_discretize, list(DISCRETIZATIONS))
        unet, embedding, first_stage = _load_networks(checkpoint, a)
        image_size = image_side(first_stage, Path(checkpoint))
        super().__init__(image_size, input_size, process_method, antialias)
        self.ddim_discretize = ddim_discretize
        self.unet = unet
        self.embedding = embedding
        self.first_stage = first_stage
        # the last label means "no class"
        self.null_label = self.num_classes = embedding.num_embeddings - 1
        self.scale = first_stage.config.scaling_factor
        self.alpha_bar = latent_alpha_bar(
            a.beta_schedule, a.linear_start, a.linear_end, a.cosine_s, a.timesteps
        )

    @property
    def denoiser(self) -> "UNet2DConditionModel":
        return self.unet

    def schedule(self, steps: int) -> Schedule:
        return DISCRETIZATIONS[self.ddim_discretize](self.alpha_bar, steps)

    def encode(self, images: Tensor) -> Tensor:
        encoded = self.first_stage.encode(self.to_model_size(images).to(self.dtype))
        return at_least_float32(encoded.latents) * self.scale

    def decode(self, x: Tensor) -> Tensor:
        images = decode_vq(self.first_stage, x / self.scale, self.dtype)
        return self.to_input_size(images.clamp(-1, 1))

    def eps(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        # the class embedding is a context of one token, [n, 1, D]
        context = self.embedding(labels)[:, None]
        output = self.unet(x.to(self.dtype), t, encoder_hidden_states=context)
        return at_least_float32(output.sample)


def decode_vq(autoencoder: "VQModel", latents: Tensor, dtype: torch.dtype) -> Tensor:
    """Quantise latents and decode them to images.

    The nearest code is looked up in float32 at least, whatever the precision of the networks: in
    half precision rounding would choose other codes.

    Args:
        autoencoder: VQ autoencoder.
        latents: Latents [N, C, h, w].
        dtype: Precision of the decoder.

    Returns:
        Images [N, 3, H, W], approximately in [-1, 1].
    """
    with torch.autocast(latents.device.type, enabled=False):
        codes = at_least_float32(autoencoder.quantize.embedding.weight)
        channels_last = at_least_float32(latents).movedim(1, -1)
        nearest = nearest_codes(channels_last.flatten(0, -2), codes)
        quantised = codes[nearest].view_as(channels_last)

        # Every code is equally far from NaN: such latents stay NaN instead of becoming an image.
        has_code = channels_last.isfinite().all(dim=-1, keepdim=True)
        quantised = torch.where(has_code, quantised, float("nan")).movedim(-1, 1).contiguous()
    decoded = autoencoder.decode(quantised.to(dtype), force_not_quantize=True)
    return at_least_float32(decoded.sample)


def nearest_codes(vectors: Tensor, codes: Tensor) -> Tensor:
    """Return the index [N] of the code nearest to each vector.

    Args:
        vectors: Vectors [N, D].
        codes: Codes [K, D].
    """
    # CUDA does not compute the distances of 65 images of 64x64 vectors to 8,192 codes at once.
    vectors_at_once = max(1, DISTANCES_AT_ONCE // len(codes))
    # A matrix product could round to TF32, so the distances are computed directly.
    return torch.cat(
        [
            torch.cdist(part, codes, compute_mode="donot_use_mm_for_euclid_dist").argmin(dim=1)
            for part in vectors.split(vectors_at_once)
        ]
    )


def _load_networks(
    checkpoint: str, architecture: LatentDiffusionArchitecture
) -> tuple["UNet2DConditionModel", nn.Embedding, "VQModel"]:
    """Load UNet, class embedding and first stage from a checkpoint file, a folder or at random."""
    a = architecture
    if checkpoint == RANDOM:
        first_stage = build_first_stage(a.first_stage, a.scale_factor)
        unet, embedding, first_stage = with_random_weights(*build_latent_unet(a), first_stage)
        return unet, embedding, first_stage
    path = converted_or_original(checkpoint, a)
    if not path.is_dir():
        return load_latent_diffusion(path, a)
    unet = load_diffusers("UNet2DConditionModel", path / "unet")
    first_stage = load_diffusers("VQModel", path / "vqvae")
    return unet, load_class_embedding(path), first_stage
