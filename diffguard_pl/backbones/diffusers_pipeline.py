"""Backbone from the folder of a diffusers pipeline such as DiT's: class-conditional or not.

The network diffuses images, or latents of an autoencoder. diffusers itself is imported when a
pipeline is loaded; its classes are therefore compared by name.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
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
from .latent import decode_vq
from .load import image_side, load_class_embedding, load_diffusers, read_json

NETWORKS = ("DiTTransformer2DModel", "UNet2DModel", "UNet2DConditionModel")
"""Supported classes of the network."""
AUTOENCODERS = ("AutoencoderKL", "VQModel")
"""Supported classes of the autoencoder."""
PREDICTION_TYPES = ["epsilon", "sample", "v_prediction"]
BETA_SCHEDULES = ["linear", "scaled_linear", "squaredcos_cap_v2"]
MIN_LEVEL = 2.0**-24
"""Lower bound of the signal level and of the noise level, so that both can be divided by; diffusers
has the same bound."""


class DiffusersPipeline(Backbone):
    """A network of diffusers with the noise levels of its scheduler.

    The network is a ``DiTTransformer2DModel`` (Peebles & Xie 2023), a ``UNet2DModel``, or a
    ``UNet2DConditionModel`` conditioned on class labels only, by its own class embedding or by a
    ``class_embedding/`` folder.

    Args:
        checkpoint: Folder of a pipeline's ``save_pretrained``, or a name or a URL of one (see
            :func:`diffguard_pl.checkpoints.registry.resolve`), with ``transformer/`` or ``unet/``,
            ``scheduler/``, and ``vae/`` or ``vqvae/`` for a latent model.
        prediction_type: Quantity that the network predicts: ``epsilon``, ``sample`` or
            ``v_prediction``. Defaults to the scheduler's.
        null_label: Label that means "no class". Defaults to the network's own if it certainly has
            one (DiT; the last row of ``class_embedding/``).
        input_size: Side, in pixels, of the images under test. Defaults to the model's own size.
        process_method: How images get to the model's size: ``resize`` or ``pad``.
        clip_denoised: Whether to clamp predicted images x0 to [-1, 1]. Defaults to True for a pixel
            model and to False for a latent model.
        antialias: Whether resizing is antialiased. Defaults to True; in the paper's environment
            (torchvision 0.11.3) it is not.

    Attributes:
        num_labels: Number of labels, including "no class"; None if the network takes no label.
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
        antialias: bool = True,
    ):
        # Networks.
        folder = resolve(checkpoint)
        network, embedding = _load_network(folder)
        autoencoder = _load_autoencoder(folder, network.config.in_channels)
        image_size = _image_size(folder, network, autoencoder)
        super().__init__(image_size, input_size, process_method, antialias)
        self.network, self.embedding, self.autoencoder = network, embedding, autoencoder

        # Latents are (mode - shift) * scale.
        self.is_pixel_space = autoencoder is None
        self.clip_denoised = self.is_pixel_space if clip_denoised is None else clip_denoised
        self.scale, self.shift = 1.0, 0.0
        if autoencoder is not None:
            self.scale = autoencoder.config.scaling_factor
            self.shift = autoencoder.config.get("shift_factor") or 0.0

        # Noise levels; the buffer is a copy on the network's device.
        scheduler = _read_scheduler(folder)
        self.alpha_bar = scheduler_alpha_bar(scheduler)
        self.register_buffer("levels", self.alpha_bar.clone(), persistent=False)
        self.prediction_type = prediction_type or scheduler.get("prediction_type", "epsilon")
        choose("prediction_type", self.prediction_type, PREDICTION_TYPES)

        # Class labels.
        self.num_labels, default_null = _labels(network, embedding)
        self.null_label = default_null if null_label is None else null_label
        if self.null_label is not None and not 0 <= self.null_label < (self.num_labels or 0):
            raise InputError(
                f"null_label: {null_label} is unknown to the network of {folder}, which has "
                f"{self.num_labels or 'no'} labels; set null_label to null or to one of them"
            )
        self.num_classes = self.num_labels
        if self.num_labels is not None and self.null_label == self.num_labels - 1:
            self.num_classes = self.num_labels - 1

    @property
    def denoiser(self) -> nn.Module:
        return self.network

    def schedule(self, steps: int) -> Schedule:
        # As the paper does for latents: inversion ends at the level that denoising starts from, so
        # that one undoes the other. `respaced` would end in pure noise, one level above.
        return uniform(self.alpha_bar, steps)

    def encode(self, images: Tensor) -> Tensor:
        images = self.to_model_size(images)
        if self.autoencoder is None:
            return images
        encoded = self.autoencoder.encode(images.to(self.dtype))
        # the mode, as a sample of the posterior would make scores random
        latents = encoded.latents if self._is_vq else encoded.latent_dist.mode()
        return (at_least_float32(latents) - self.shift) * self.scale

    def decode(self, x: Tensor) -> Tensor:
        if self.autoencoder is None:
            return self.to_input_size(x)
        latents = x / self.scale + self.shift
        if self._is_vq:
            images = decode_vq(self.autoencoder, latents, self.dtype)
        else:
            images = at_least_float32(self.autoencoder.decode(latents.to(self.dtype)).sample)
        return self.to_input_size(images.clamp(-1, 1))

    def eps(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        # a learned variance in further channels is not needed by DDIM with eta = 0
        output = self.network(x.to(self.dtype), t, **self._condition(labels)).sample
        output = at_least_float32(output[:, : x.shape[1]])
        if self.prediction_type == "epsilon":
            return output
        level = Level.of(self.levels[t], x)
        if self.prediction_type == "sample":
            return eps_from_x0(x, output, level)
        # v = signal * eps - noise * x0 (Salimans & Ho 2022)
        return level.signal * output + level.noise * x

    @property
    def _is_vq(self) -> bool:
        return type(self.autoencoder).__name__ == "VQModel"

    def _condition(self, labels: Tensor) -> dict[str, Any]:
        """Return the network's keyword arguments that carry the class labels [n]."""
        if self.num_labels is None:
            return {}
        # On a GPU this check would wait for the device, which reports such a label by itself.
        unknown = (labels < 0) | (labels >= self.num_labels)
        if labels.device.type == "cpu" and unknown.any():
            raise InputError(
                f"classifier: label {int(labels[unknown][0])} is unknown to the backbone, which "
                f"has {self.num_classes} classes; choose a classifier with the same classes"
            )
        if self.embedding is not None:
            return {"encoder_hidden_states": self.embedding(labels)[:, None]}
        if type(self.network).__name__ == "UNet2DConditionModel":
            return {"encoder_hidden_states": None, "class_labels": labels}
        return {"class_labels": labels}


def scheduler_alpha_bar(config: Mapping[str, Any]) -> Tensor:
    """Compute the signal level alpha-bar [T] of a ``scheduler_config.json``.

    In float64, while diffusers computes it in float32.

    Raises:
        InputError: The scheduler has no betas (flow matching, EDM) or an unknown beta_schedule.
    """
    betas, kind = config.get("trained_betas"), config.get("beta_schedule")
    if config.get("use_flow_sigmas") or (betas is None and kind is None):
        raise InputError(
            f"scheduler_config.json: {config.get('_class_name')} has no betas (flow matching, "
            "EDM), so DDIM does not support it; choose a model with a beta_schedule: "
            f"{', '.join(BETA_SCHEDULES)}"
        )
    start, end = config.get("beta_start", 1e-4), config.get("beta_end", 0.02)
    steps = config.get("num_train_timesteps", 1000)
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
    return alpha_bar.clamp(MIN_LEVEL, 1 - MIN_LEVEL)


# ---- parts of a pipeline's folder


def _load_network(folder: Path) -> tuple[Any, nn.Embedding | None]:
    """Load the network, and its class embedding if that has a separate folder."""
    # Repositories such as google/ddpm-cifar10-32 keep all files beside model_index.json.
    places = [folder / "transformer", folder / "unet", folder]
    place = next((place for place in places if (place / "config.json").is_file()), None)
    if place is None:
        raise InputError(
            f"checkpoint {folder}: transformer/config.json or unet/config.json not found; must be "
            "the folder of a diffusers pipeline"
        )
    network = load_diffusers(NETWORKS, place)
    is_condition_unet = type(network).__name__ == "UNet2DConditionModel"
    if is_condition_unet and (folder / "class_embedding").is_dir():
        return network, load_class_embedding(folder)
    if not _takes_class_labels_only(network):
        raise InputError(
            f"checkpoint {place}: this {type(network).__name__} is conditioned on more than a "
            "class label (e.g. text), which is not supported; choose a class-conditional or "
            f"unconditional {' or '.join(NETWORKS)}"
        )
    return network, None


def _takes_class_labels_only(network: Any) -> bool:
    """Return whether class labels, or nothing at all, are the network's only condition."""
    config = network.config
    if type(network).__name__ != "UNet2DConditionModel":
        return not config.get("class_embed_type")
    if config.class_embed_type or not config.num_class_embeds:
        return False
    blocks = (*config.down_block_types, config.mid_block_type, *config.up_block_types)
    return not any("CrossAttn" in str(block) for block in blocks)


def _load_autoencoder(folder: Path, channels: int) -> Any:
    """Load the autoencoder of a network that diffuses this number of channels.

    Returns:
        The autoencoder; None for a pixel model.
    """
    places = [folder / "vae", folder / "vqvae"]
    place = next((place for place in places if place.is_dir()), None)
    if place is None:
        index = folder / "model_index.json"
        parts = read_json(index) if index.is_file() else {}
        if channels == 3 and not parts.get("vae") and not parts.get("vqvae"):
            return None
        raise InputError(
            f"checkpoint {folder}: a latent model ({channels} channels) without its autoencoder; "
            "add the missing folder vae/ or vqvae/"
        )

    autoencoder = load_diffusers(AUTOENCODERS, place)
    config = autoencoder.config
    latents = config.latent_channels
    if type(autoencoder).__name__ == "VQModel":
        latents = config.vq_embed_dim or config.latent_channels
    if latents != channels:
        raise InputError(
            f"checkpoint {place}: its latents have {latents} channels, but the network takes "
            f"{channels}; choose the autoencoder that the network was trained with"
        )
    return autoencoder


def _image_size(folder: Path, network: Any, autoencoder: Any) -> int:
    """Return the side of the images: the network's, times the autoencoder's downsampling factor."""
    # The autoencoder's sample_size does not help: Stable Diffusion's is 256 or 512 for any use.
    size = image_side(network, folder)
    if autoencoder is None:
        return size
    return size * 2 ** (len(autoencoder.config.block_out_channels) - 1)


def _read_scheduler(folder: Path) -> dict[str, Any]:
    """Return the config of the scheduler, in its folder or beside model_index.json."""
    path = folder / "scheduler" / "scheduler_config.json"
    return read_json(path if path.is_file() else folder / "scheduler_config.json")


def _labels(network: Any, embedding: nn.Embedding | None) -> tuple[int | None, int | None]:
    """Return the number of labels, including "no class", and the label of "no class".

    Each is None if the network has none, or none for certain.
    """
    if embedding is not None:
        return embedding.num_embeddings, embedding.num_embeddings - 1
    if type(network).__name__ == "DiTTransformer2DModel":
        classes = network.config.num_embeds_ada_norm
        return classes + 1, classes
    return network.config.num_class_embeds, None
