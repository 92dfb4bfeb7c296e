"""The latent-diffusion family: class-conditional, in the latent space of a VQ first stage."""

from pathlib import Path

from diffusers import UNet2DConditionModel, VQModel
from torch import Tensor, nn

from ..diffusion.schedule import Schedule, scaled_linear_alpha_bar, uniform
from .base import Backbone
from .convert import LatentDiffusionArchitecture, Origin, fit, latent_diffusion, load_diffusers, load_tensors, resolve


class LatentDiffusion(Backbone):
    """A UNet on VQ latents (CompVis latent-diffusion; Rombach et al. 2022), hosted in diffusers' modules.

    Args:
        checkpoint: a CompVis ``.ckpt``, a folder with ``unet/``, ``vqvae/`` (each as ``save_pretrained`` leaves it) and
            ``class_embedding/model.safetensors``, or the name of shipped weights.
        architecture: CompVis' settings, for a ``.ckpt``; a folder brings its own but for the noise schedule.
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
        path = resolve(checkpoint)
        a = architecture or LatentDiffusionArchitecture()
        if path.is_dir():
            unet = load_diffusers(UNet2DConditionModel, path / "unet")
            first_stage = load_diffusers(VQModel, path / "vqvae")
            embedding = _class_embedding(path)
        else:
            unet, embedding, first_stage = latent_diffusion(path, a)
        super().__init__(first_stage.config.sample_size, input_size, process_method)
        self.unet, self.embedding, self.first_stage = unet, embedding, first_stage
        self.null_label = embedding.num_embeddings - 1
        self.scale = first_stage.config.scaling_factor
        self.alpha_bar = scaled_linear_alpha_bar(a.linear_start, a.linear_end, a.timesteps)

    def schedule(self, steps: int) -> Schedule:
        return uniform(self.alpha_bar, steps)

    def encode(self, images: Tensor) -> Tensor:
        return self.first_stage.encode(self.to_model_size(images)).latents.float() * self.scale

    def decode(self, x: Tensor) -> Tensor:
        return self.to_input_size(self.first_stage.decode(x / self.scale).sample.float().clamp(-1, 1))

    def eps(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        return self.unet(x, t, encoder_hidden_states=self.embedding(labels)[:, None]).sample.float()


def _class_embedding(folder: Path) -> nn.Embedding:
    path = folder / "class_embedding" / "model.safetensors"
    weights = {key: Origin(key, tensor) for key, tensor in load_tensors(path).items()}
    classes, dim = weights["weight"].tensor.shape
    return fit(nn.Embedding(classes, dim, device="meta"), weights, path, {})
