"""The latent-diffusion family: class-conditional, in the latent space of a VQ first stage."""

from pathlib import Path

import torch
from diffusers import UNet2DConditionModel, VQModel
from torch import Tensor, nn

from ..checkpoints.architectures import LatentDiffusionArchitecture
from ..checkpoints.converted import converted_or_original, known_architecture
from ..checkpoints.tensors import load_tensors
from ..diffusion.schedule import Schedule, scaled_linear_alpha_bar, uniform
from ..dtypes import at_least_float32
from .base import Backbone
from .convert_latent_diffusion import first_stage_module, latent_diffusion, latent_diffusion_modules
from .load import RANDOM, Origin, fit, load_diffusers, with_random_weights


class LatentDiffusion(Backbone):
    """A UNet on VQ latents (CompVis latent-diffusion; Rombach et al. 2022), hosted in diffusers' modules.

    Args:
        checkpoint: a CompVis ``.ckpt``, a folder with ``unet/``, ``vqvae/`` (each as ``save_pretrained`` leaves it) and
            ``class_embedding/model.safetensors``, a name or an address (see :func:`diffguard_pl.checkpoints.registry.resolve`), or ``random``
            for weights that make a dry run possible. A converted copy (``diffguard-pl checkpoints convert``) is used in
            place of its file.
        architecture: CompVis' settings, for a ``.ckpt``; none: those of the name, or the defaults. A folder brings its own but for
            the noise schedule (a converted copy brings that too).
        input_size: side of the images that are tested; none: the model's own.
        process_method: how they are brought to the model's size: ``resize`` or ``pad``.
    """

    def __init__(
        self,
        checkpoint: str,
        architecture: LatentDiffusionArchitecture | None = None,
        input_size: int | None = None,
        process_method: str = "pad",
    ):
        a = architecture or known_architecture(checkpoint, LatentDiffusionArchitecture)
        unet, embedding, first_stage = _modules(checkpoint, a)
        super().__init__(first_stage.config.sample_size, input_size, process_method)
        self.unet, self.embedding, self.first_stage = unet, embedding, first_stage
        self.null_label = self.num_classes = embedding.num_embeddings - 1
        self.scale = first_stage.config.scaling_factor
        self.alpha_bar = scaled_linear_alpha_bar(a.linear_start, a.linear_end, a.timesteps)

    @property
    def denoiser(self) -> UNet2DConditionModel:
        return self.unet

    def schedule(self, steps: int) -> Schedule:
        return uniform(self.alpha_bar, steps)

    def encode(self, images: Tensor) -> Tensor:
        encoded = self.first_stage.encode(self.to_model_size(images).to(self.dtype))
        return at_least_float32(encoded.latents) * self.scale

    def decode(self, x: Tensor) -> Tensor:
        return self.to_input_size(
            decoded(self.first_stage, x / self.scale, self.dtype).clamp(-1, 1)
        )

    def eps(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        condition = self.embedding(labels)[:, None]
        output = self.unet(x.to(self.dtype), t, encoder_hidden_states=condition)
        return at_least_float32(output.sample)


def decoded(autoencoder: VQModel, latents: Tensor, dtype: torch.dtype) -> Tensor:
    """Latents -> images. The nearest code is found in float32 at least, whatever the precision of the networks."""
    with torch.autocast(latents.device.type, enabled=False):
        codes = at_least_float32(autoencoder.quantize.embedding.weight)
        flat = at_least_float32(latents).movedim(1, -1)
        # not by a matrix product, which may round to TF32
        nearest = torch.cdist(
            flat.flatten(0, -2), codes, compute_mode="donot_use_mm_for_euclid_dist"
        ).argmin(dim=1)
        quantised = codes[nearest].view_as(flat).movedim(-1, 1)
    return at_least_float32(autoencoder.decode(quantised.to(dtype), force_not_quantize=True).sample)


def _modules(
    checkpoint: str, architecture: LatentDiffusionArchitecture
) -> tuple[UNet2DConditionModel, nn.Embedding, VQModel]:
    a = architecture
    if checkpoint == RANDOM:
        return tuple(
            with_random_weights(
                *latent_diffusion_modules(a), first_stage_module(a.first_stage, a.scale_factor)
            )
        )
    path = converted_or_original(checkpoint, a)
    if not path.is_dir():
        return latent_diffusion(path, a)
    unet, first_stage = (
        load_diffusers(UNet2DConditionModel, path / "unet"),
        load_diffusers(VQModel, path / "vqvae"),
    )
    return unet, _class_embedding(path), first_stage


def _class_embedding(folder: Path) -> nn.Embedding:
    path = folder / "class_embedding" / "model.safetensors"
    weights = {key: Origin(key, tensor) for key, tensor in load_tensors(path).items()}
    classes, dim = weights["weight"].tensor.shape
    return fit(nn.Embedding(classes, dim, device="meta"), weights, path, {})
