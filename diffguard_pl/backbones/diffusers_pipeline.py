"""Any diffusers pipeline that denoises images, or latents of an autoencoder, with a class label or without: DiT first of all."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DiTTransformer2DModel,
    UNet2DConditionModel,
    UNet2DModel,
    VQModel,
)
from torch import Tensor, nn

from ..checkpoints.registry import resolve
from ..diffusion.ddim import Level, eps_from_x0
from ..diffusion.schedule import (
    Schedule,
    alpha_bar_of,
    cosine_alpha_bar,
    scaled_linear_alpha_bar,
    uniform,
    zero_terminal_snr,
)
from ..dtypes import at_least_float32
from ..errors import InputError, choose
from .base import Backbone
from .latent import _class_embedding, decoded
from .load import load_diffusers, read_json

NETWORKS = (DiTTransformer2DModel, UNet2DModel, UNet2DConditionModel)
AUTOENCODERS = (AutoencoderKL, VQModel)
PREDICTION_TYPES = ["epsilon", "sample", "v_prediction"]
BETA_SCHEDULES = ["linear", "scaled_linear", "squaredcos_cap_v2"]
SMALLEST = 2.0**-24
"""Level of signal, and of noise, that is never gone below, so that either can be divided by; diffusers has the same number."""


class DiffusersPipeline(Backbone):
    """A network from diffusers with its scheduler's noise levels, on images or on an autoencoder's latents.

    The network is a ``DiTTransformer2DModel`` (Peebles & Xie 2023), a ``UNet2DModel``, or a ``UNet2DConditionModel`` that takes
    class labels, by itself or through a ``class_embedding/`` folder.

    Args:
        checkpoint: a folder as ``save_pretrained`` of a pipeline leaves it, or a name or an address of one (see
            :func:`diffguard_pl.checkpoints.registry.resolve`): ``transformer/`` or ``unet/``, ``scheduler/``, and ``vae/`` or ``vqvae/`` for a
            model of latents.
        prediction_type: what the network predicts: ``epsilon``, ``sample`` or ``v_prediction``; none: as the scheduler says.
        null_label: the label that means "no class"; none: the network's own where it has one for certain (DiT; the last row of
            ``class_embedding/``).
        input_size: side of the images that are tested; none: the model's own.
        process_method: how they are brought to the model's size: ``resize`` or ``pad``.
        clip_denoised: clamp predicted pictures to [-1, 1]; none: for a model of images, but not for one of latents.

    Attributes:
        num_labels: labels that the network knows, "no class" included; None: it takes none.
    """

    levels: Tensor

    def __init__(
        self,
        checkpoint: str,
        prediction_type: str | None = None,
        null_label: int | None = None,
        input_size: int | None = None,
        process_method: str = "resize",
        clip_denoised: bool | None = None,
    ):
        folder = resolve(checkpoint)
        network, embedding = _network(folder)
        autoencoder = _autoencoder(folder, network.config.in_channels)
        super().__init__(_image_size(folder, network, autoencoder), input_size, process_method)
        self.network, self.embedding, self.autoencoder = network, embedding, autoencoder
        self.is_pixel_space = autoencoder is None
        self.clip_denoised = self.is_pixel_space if clip_denoised is None else clip_denoised
        self.scale = 1.0 if autoencoder is None else autoencoder.config.scaling_factor
        self.shift = 0.0 if autoencoder is None else autoencoder.config.get("shift_factor") or 0.0

        scheduler = _scheduler(folder)
        self.alpha_bar = scheduler_alpha_bar(scheduler)
        self.register_buffer(
            "levels", self.alpha_bar.clone(), persistent=False
        )  # where the network is
        self.prediction_type = prediction_type or scheduler.get("prediction_type", "epsilon")
        choose("prediction_type", self.prediction_type, PREDICTION_TYPES)

        self.num_labels, own_null = _labels(network, embedding)
        self.null_label = own_null if null_label is None else null_label
        if self.null_label is not None and not 0 <= self.null_label < (self.num_labels or 0):
            raise InputError(
                f"null_label={null_label}: the network of {folder} knows {self.num_labels or 'no'} labels, from 0 on"
            )
        null_is_last = self.num_labels is not None and self.null_label == self.num_labels - 1
        self.num_classes = self.num_labels - null_is_last if self.num_labels is not None else None

    @property
    def denoiser(self) -> nn.Module:
        return self.network

    def schedule(self, steps: int) -> Schedule:
        # as the paper does for latents: inversion ends at the level that denoising starts from, so that the two undo each other;
        # the other choice, `respaced`, ends in pure noise, one level above
        return uniform(self.alpha_bar, steps)

    def encode(self, images: Tensor) -> Tensor:
        images = self.to_model_size(images)
        if self.autoencoder is None:
            return images
        encoded = self.autoencoder.encode(images.to(self.dtype))
        latents = (
            encoded.latents if isinstance(self.autoencoder, VQModel) else encoded.latent_dist.mode()
        )
        return (at_least_float32(latents) - self.shift) * self.scale

    def decode(self, x: Tensor) -> Tensor:
        if self.autoencoder is None:
            return self.to_input_size(x)
        latents = x / self.scale + self.shift
        if isinstance(self.autoencoder, VQModel):
            images = decoded(self.autoencoder, latents, self.dtype)
        else:
            images = at_least_float32(self.autoencoder.decode(latents.to(self.dtype)).sample)
        return self.to_input_size(images.clamp(-1, 1))

    def eps(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        # a learned variance, in channels of its own, is left out
        output = self.network(x.to(self.dtype), t, **self._condition(labels)).sample
        output = at_least_float32(output[:, : x.shape[1]])
        if self.prediction_type == "epsilon":
            return output
        level = Level.of(self.levels[t], x)
        if self.prediction_type == "sample":
            return eps_from_x0(x, output, level)
        return (
            level.signal * output + level.noise * x
        )  # v = signal * eps - noise * x0 (Salimans & Ho 2022)

    def _condition(self, labels: Tensor) -> dict[str, Any]:
        """How the network is told labels [n]."""
        if self.num_labels is None:
            return {}
        outside = (labels < 0) | (labels >= self.num_labels)
        if (
            labels.device.type == "cpu" and outside.any()
        ):  # a GPU would have to wait, and says so itself
            raise InputError(
                f"label {int(labels[outside][0])}: the backbone knows {self.num_classes} classes; take a classifier "
                "of the same classes"
            )
        if not isinstance(self.network, UNet2DConditionModel):
            return {"class_labels": labels}
        if self.embedding is None:
            return {"encoder_hidden_states": None, "class_labels": labels}
        return {"encoder_hidden_states": self.embedding(labels)[:, None]}


def scheduler_alpha_bar(config: Mapping[str, Any]) -> Tensor:
    """Signal level alpha-bar [T] of a ``scheduler_config.json``, in float64; diffusers itself computes it in float32.

    Raises:
        InputError: a scheduler without betas, such as one for flow matching, or of an unknown beta_schedule.
    """
    betas, kind = config.get("trained_betas"), config.get("beta_schedule")
    if config.get("use_flow_sigmas") or (betas is None and kind is None):
        raise InputError(
            f"scheduler_config.json: {config.get('_class_name')} has no betas (flow matching, EDM): no DDIM for such a model here; "
            f"take one with a beta_schedule, {', '.join(BETA_SCHEDULES)}"
        )
    start, end, steps = (
        config.get("beta_start", 1e-4),
        config.get("beta_end", 0.02),
        config.get("num_train_timesteps", 1000),
    )
    if betas is not None:
        alpha_bar = alpha_bar_of(torch.tensor(betas, dtype=torch.float64))
    elif kind == "linear":
        alpha_bar = alpha_bar_of(torch.linspace(start, end, steps, dtype=torch.float64))
    elif kind == "scaled_linear":
        alpha_bar = scaled_linear_alpha_bar(start, end, steps)
    else:
        choose("beta_schedule", str(kind), BETA_SCHEDULES)
        alpha_bar = cosine_alpha_bar(steps)
    if config.get("rescale_betas_zero_snr"):
        alpha_bar = zero_terminal_snr(alpha_bar)
    return alpha_bar.clamp(SMALLEST, 1 - SMALLEST)


def _network(folder: Path) -> tuple[Any, nn.Embedding | None]:
    """The network, and its class embedding where that has a folder of its own."""
    # google/ddpm-* have no folders: the network's files lie beside model_index.json
    places = [folder / "transformer", folder / "unet", folder]
    place = next((place for place in places if (place / "config.json").is_file()), None)
    if place is None:
        raise InputError(
            f"checkpoint {folder}: no transformer/config.json or unet/config.json; expected the folder of a diffusers pipeline"
        )
    network = load_diffusers(NETWORKS, place)
    if isinstance(network, UNet2DConditionModel) and (folder / "class_embedding").is_dir():
        return network, _class_embedding(folder)
    if _wants_more_than_a_label(network):
        raise InputError(
            f"checkpoint {place}: this {type(network).__name__} is told more than a class label (a text?); "
            f"supported are {', '.join(kind.__name__ for kind in NETWORKS)} of class labels"
        )
    return network, None


def _wants_more_than_a_label(network: Any) -> bool:
    c = network.config
    if not isinstance(network, UNet2DConditionModel):
        return bool(c.get("class_embed_type"))
    blocks = (*c.down_block_types, c.mid_block_type, *c.up_block_types)
    return (
        bool(c.class_embed_type)
        or not c.num_class_embeds
        or any("CrossAttn" in str(block) for block in blocks)
    )


def _autoencoder(folder: Path, channels: int) -> Any:
    """The autoencoder of a model that diffuses so many channels; None: it diffuses images."""
    place = next((folder / name for name in ("vae", "vqvae") if (folder / name).is_dir()), None)
    if place is None:
        index = folder / "model_index.json"
        parts = read_json(index) if index.is_file() else {}
        if channels == 3 and not parts.get("vae") and not parts.get("vqvae"):
            return None
        raise InputError(
            f"checkpoint {folder}: a model of latents ({channels} channels) without its autoencoder; "
            "a folder vae/ or vqvae/ is missing from it"
        )
    autoencoder = load_diffusers(AUTOENCODERS, place)
    c = autoencoder.config
    latents = (
        c.latent_channels
        if isinstance(autoencoder, AutoencoderKL)
        else c.vq_embed_dim or c.latent_channels
    )
    if latents != channels:
        raise InputError(
            f"checkpoint {place}: its latents have {latents} channels, and the network takes {channels}"
        )
    return autoencoder


def _image_size(folder: Path, network: Any, autoencoder: Any) -> int:
    """Side of the images: of the network's, times what the autoencoder shrinks them by."""
    # not the autoencoder's own sample_size: Stable Diffusion's says 256 or 512 whatever it is used for
    size = network.config.sample_size
    size = size[0] if isinstance(size, (list, tuple)) and len(set(size)) == 1 else size
    if not isinstance(size, int):
        raise InputError(
            f"checkpoint {folder}: sample_size of the network's config.json is {size}; expected one number of pixels"
        )
    return (
        size
        if autoencoder is None
        else size * 2 ** (len(autoencoder.config.block_out_channels) - 1)
    )


def _scheduler(folder: Path) -> dict[str, Any]:
    place = folder / "scheduler" / "scheduler_config.json"
    return read_json(place if place.is_file() else folder / "scheduler_config.json")


def _labels(network: Any, embedding: nn.Embedding | None) -> tuple[int | None, int | None]:
    """How many labels the network knows, "no class" included, and which of them is that; None where it has none."""
    if embedding is not None:
        return embedding.num_embeddings, embedding.num_embeddings - 1
    if isinstance(network, DiTTransformer2DModel):
        classes = network.config.num_embeds_ada_norm
        return classes + 1, classes
    return network.config.num_class_embeds, None
