"""Backbone from the folder of a diffusers pipeline such as DiT's: class-conditional or not.

Its scheduler says what the network predicts: noise, x0, v, the flow of flow matching, EDM's F, or
the end of the path (a consistency model).

The network diffuses images, or latents of an autoencoder. diffusers itself is imported when a
pipeline is loaded; its classes are therefore compared by name.
"""

from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..checkpoints.registry import resolve
from ..errors import InputError
from .load import image_side, load_class_embedding, load_diffusers, read_json
from .parametrised import Latents, ParametrisedBackbone, load_autoencoder
from .schedulers import (
    CONSISTENCY,
    read_scheduler,
    scheduler_alpha_bar,
    scheduler_parametrisation,
    scheduler_schedule,
)

NETWORKS = ("DiTTransformer2DModel", "UNet2DModel", "UNet2DConditionModel")
"""Supported classes of the network."""


class DiffusersPipeline(ParametrisedBackbone):
    """A network of diffusers with the noise levels of its scheduler.

    The network is a ``DiTTransformer2DModel`` (Peebles & Xie 2023), a ``UNet2DModel``, or a
    ``UNet2DConditionModel`` conditioned on class labels only, by its own class embedding or by a
    ``class_embedding/`` folder.

    Args:
        checkpoint: Folder of a pipeline's ``save_pretrained``, or a name or a URL of one (see
            :func:`diffguard_pl.checkpoints.registry.resolve`), with ``transformer/`` or ``unet/``,
            ``scheduler/``, and ``vae/`` or ``vqvae/`` for a latent model.
        prediction_type: Quantity that the network predicts: ``epsilon``, ``sample`` or
            ``v_prediction``. Defaults to the scheduler's; flow matching and consistency models have
            their own.
        null_label: Label that means "no class". Defaults to the network's own if it certainly has
            one (DiT; the last row of ``class_embedding/``).
        spacing: Distances of the steps: ``uniform`` in the training timesteps; ``karras``, even
            distances of the seventh root of noise / signal (Karras et al. 2022, equation 5); or
            ``scheduler``, as the model's own scheduler has them. Defaults to ``scheduler`` for a
            consistency model, else to ``uniform``.
        input_size: Side, in pixels, of the images under test. Defaults to the model's own size.
        process_method: How images get to the model's size: ``resize`` or ``pad``.
        clip_denoised: Whether to clamp predicted images x0 to [-1, 1]. Defaults to True for a pixel
            model and to False for a latent model.
        antialias: Whether resizing is antialiased. Defaults to True; in the paper's environment
            (torchvision 0.11.3) it is not.

    Attributes:
        num_labels: Number of labels, including "no class"; None if the network takes no label.
    """

    def __init__(
        self,
        checkpoint: str,
        prediction_type: str | None = None,
        null_label: int | None = None,
        spacing: str | None = None,
        input_size: int | None = None,
        process_method: str = "resize",
        clip_denoised: bool | None = None,
        antialias: bool = True,
    ):
        folder = resolve(checkpoint)
        network, embedding = _load_network(folder)
        latents = _load_latents(folder, network.config.in_channels)
        scheduler = read_scheduler(folder)
        alpha_bar = scheduler_alpha_bar(scheduler)
        if spacing is None:
            spacing = "scheduler" if scheduler.get("_class_name") == CONSISTENCY else "uniform"
        super().__init__(
            image_side(network, folder),
            alpha_bar,
            scheduler_parametrisation(scheduler, prediction_type),
            latents,
            spacing,
            partial(scheduler_schedule, scheduler, alpha_bar),
            clip_denoised,
            input_size,
            process_method,
            antialias,
        )
        self.network, self.embedding = network, embedding

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
        self.given_class_names = _class_names(folder, self.num_classes)

    @property
    def denoiser(self) -> nn.Module:
        return self.network

    def predict(self, x: Tensor, times: Tensor, labels: Tensor) -> Tensor:
        return self.network(x, times, **self._condition(labels)).sample

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


def _load_latents(folder: Path, channels: int) -> Latents | None:
    """Load the autoencoder of a network that diffuses this number of channels.

    Returns:
        The autoencoder and its scale; None for a pixel model.
    """
    places = [folder / "vae", folder / "vqvae"]
    place = next((place for place in places if place.is_dir()), None)
    if place is not None:
        return Latents.of_config(load_autoencoder(place, channels))
    index = folder / "model_index.json"
    parts = read_json(index) if index.is_file() else {}
    if channels == 3 and not parts.get("vae") and not parts.get("vqvae"):
        return None
    raise InputError(
        f"checkpoint {folder}: a latent model ({channels} channels) without its autoencoder; "
        "add the missing folder vae/ or vqvae/"
    )


def _class_names(folder: Path, num_classes: int | None) -> list[str] | None:
    """Return the names of the classes that model_index.json has, as DiT's; None without them."""
    index = folder / "model_index.json"
    given = read_json(index).get("id2label") if index.is_file() else None
    if not isinstance(given, dict) or num_classes is None:
        return None
    names = [given.get(str(i)) for i in range(num_classes)]
    return [str(name) for name in names] if all(names) else None


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
