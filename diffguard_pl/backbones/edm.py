"""Backbone of NVIDIA's EDM and EDM2 checkpoints: class-conditional ImageNet and CIFAR-10."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from ..checkpoints.registry import resolve
from ..checkpoints.state_dicts import (
    OriginalTensor,
    Weights,
    choose_weights,
    find_weights,
    first_keys,
    refuse_wrong_values,
)
from ..checkpoints.tensors import load_content
from ..diffusion.parametrisation import EDM
from ..diffusion.schedule import alpha_bar_of_sigma, karras_sigmas
from ..errors import InputError
from .edm2_network import EDM2UNet, Fourier, normalised_weights
from .edm_network import EDMUNet, Frequencies
from .load import ConvertedWeights, load_converted, without_weights
from .parametrised import Latents, ParametrisedBackbone, load_autoencoder

EDM_KEYS = ("map_layer0.weight", "map_layer1.weight")
EDM2_KEYS = ("emb_noise.weight", "out_gain")
"""Keys by which the networks are recognised."""
TRAIN_STEPS = 1000
RAW_MEAN = (5.81, 3.25, 0.12, -2.15)
RAW_STD = (4.17, 4.62, 3.71, 3.28)
"""Of the latents of Stable Diffusion's autoencoder on images in [0, 1], by channel (EDM2)."""


class EDMDiffusion(ParametrisedBackbone):
    """A network of EDM (Karras et al. 2022) or EDM2 (Karras et al. 2024).

    The architecture is read off the file. NVIDIA publishes pickles of whole programs, which are not
    opened here: save the tensors of one with NVIDIA's own code, see docs/reference/backbones.md.

    Args:
        checkpoint: State dict of a network, ``.pt`` or ``.safetensors``; or a name or a URL (see
            :func:`diffguard_pl.checkpoints.registry.resolve`).
        unconditional: State dict of a second network, without labels, that predicts the noise under
            "no class" for classifier-free guidance, as EDM2 does. Defaults to none.
        zeros_are_null: Whether the network was trained with labels dropped, so that it predicts the
            noise under "no class" itself. NVIDIA's were not.
        vae: Folder of the autoencoder (``stabilityai/sd-vae-ft-mse``) of a latent model: EDM2's of
            512 pixels. Defaults to none: the network diffuses images.
        sigma_min: Smallest noise level.
        sigma_max: Largest noise level.
        sigma_data: Standard deviation of images or latents of the training.
        spacing: Distances of the steps: ``karras``, as in EDM's own sampler, or ``uniform``.
        input_size: Side, in pixels, of the images under test. Defaults to the model's own size.
        process_method: How images get to the model's size: ``resize`` or ``pad``.
        clip_denoised: Whether to clamp predicted images x0 to [-1, 1]. Defaults to True for a pixel
            model and to False for a latent model.
        antialias: Whether resizing is antialiased.
    """

    def __init__(
        self,
        checkpoint: str,
        unconditional: str | None = None,
        zeros_are_null: bool = False,
        vae: str | None = None,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        sigma_data: float = 0.5,
        spacing: str = "karras",
        input_size: int | None = None,
        process_method: str = "resize",
        clip_denoised: bool | None = None,
        antialias: bool = True,
    ):
        if not (0 < sigma_min < sigma_max and sigma_data > 0):
            raise InputError(
                f"sigma_min={sigma_min}, sigma_max={sigma_max}, sigma_data={sigma_data}: must be "
                "0 < sigma_min < sigma_max and sigma_data > 0"
            )
        path = resolve(checkpoint)
        network = load_edm(path)
        latents = _latents(vae, network.channels)
        super().__init__(
            _side(network),
            alpha_bar_of_sigma(karras_sigmas(TRAIN_STEPS, sigma_min, sigma_max)),
            EDM(sigma_data),
            latents,
            spacing,
            None,
            clip_denoised,
            input_size,
            process_method,
            antialias,
        )
        self.network, self.num_classes = network, network.num_classes
        self.unconditional = self._second(unconditional)
        if zeros_are_null and self.num_classes is None:
            raise InputError(
                f"zeros_are_null: the network of {path} takes no labels; set it to false"
            )
        if self.num_classes and (zeros_are_null or self.unconditional):
            self.null_label = self.num_classes

    @property
    def denoiser(self) -> nn.Module:
        return self.network

    def networks_to(self, dtype: torch.dtype) -> None:
        # Angles of Fourier features of several hundred radians need the precision that they have.
        kinds = (Frequencies, Fourier)
        kept = [
            (module, {name: buffer.clone() for name, buffer in module.named_buffers()})
            for module in self.modules()
            if isinstance(module, kinds)
        ]
        super().networks_to(dtype)
        for module, buffers in kept:
            for name, buffer in buffers.items():
                setattr(module, name, buffer)

    def predict(self, x: Tensor, times: Tensor, labels: Tensor) -> Tensor:
        if self.num_classes is None:
            return self.network(x, times, x.new_zeros(len(x), 0))
        # The label after the last class means "no class": zeros.
        weights = one_hot(labels, self.num_classes + 1)[:, : self.num_classes]
        if self.unconditional is None:
            return self.network(x, times, weights)

        # Each network evaluates its own rows.
        output = torch.empty_like(x)
        is_null = labels == self.num_classes
        for network, rows in ((self.network, ~is_null), (self.unconditional, is_null)):
            if rows.any():
                # autocast may give another precision
                output[rows] = network(x[rows], times[rows], weights[rows]).to(output)
        return output

    def _second(self, checkpoint: str | None) -> Any:
        """Load the network of "no class"."""
        if checkpoint is None:
            return None
        path = resolve(checkpoint)
        network = load_edm(path)
        if network.num_classes is not None or self.num_classes is None:
            raise InputError(
                f"unconditional: {path} must be a network without labels, beside a checkpoint "
                "with labels"
            )
        sizes = [(_side(part), part.channels) for part in (network, self.network)]
        if sizes[0] != sizes[1]:
            raise InputError(
                f"unconditional: {path} takes {sizes[0][1]} channels of {sizes[0][0]} pixels, the "
                f"checkpoint {sizes[1][1]} of {sizes[1][0]}; choose its twin"
            )
        return network


def _side(network: EDMUNet | EDM2UNet) -> int:
    """Return the side of the images or latents of a network."""
    return max(int(name.split("x")[0]) for name in network.enc)


def load_edm(path: Path) -> EDMUNet | EDM2UNet:
    """Load a network of EDM or EDM2 from a state dict.

    Returns:
        The network in eval mode, frozen, in float32.

    Raises:
        InputError: The file is damaged or of something else.
    """
    content = load_content(path)
    for keys, kind in ((EDM_KEYS, EDMUNet), (EDM2_KEYS, EDM2UNet)):
        found = find_weights(content, keys)
        if found:
            return _build(kind, choose_weights(found, True, path, "checkpoint"), path)
    raise InputError(
        f"checkpoint {path}: must be the state dict of a network of EDM ({EDM_KEYS[0]}) or EDM2 "
        f"({EDM2_KEYS[0]}); {first_keys(content)}"
    )


def _build(kind: type[EDMUNet] | type[EDM2UNet], found: Weights, path: Path) -> EDMUNet | EDM2UNet:
    # The embedding of EDM's augmentations is not used outside of its training.
    weights: ConvertedWeights = {
        key: OriginalTensor(name, tensor)
        for key, (name, tensor) in found.tensors.items()
        if not key.startswith("map_augment")
    }
    shapes = {key: list(tensor.shape) for key, (_, tensor) in weights.items()}
    try:
        with without_weights():
            network = kind(shapes)
            # Shapes that do not fit one another show up in an evaluation, which costs nothing here.
            side = _side(network)
            one = torch.zeros(1, network.channels, side, side)
            network(one, torch.zeros(1), torch.zeros(1, network.num_classes or 0))
    except KeyError as error:
        raise InputError(f"checkpoint {path}: does not fit, {error.args[0]} is missing") from error
    except (IndexError, RuntimeError, TypeError, ValueError, ZeroDivisionError) as error:
        raise InputError(f"checkpoint {path}: does not fit ({error}); save it again") from error
    refuse_wrong_values(weights, network.state_dict(), f"checkpoint {path}")
    if kind is EDM2UNet:
        try:
            weights = normalised_weights(weights)
        except KeyError as error:
            raise InputError(
                f"checkpoint {path}: does not fit, {error.args[0]} is missing or no number"
            ) from error
    return load_converted(network, weights, path, {})


def _latents(vae: str | None, channels: int) -> Latents | None:
    """Load the autoencoder of a network of this number of channels."""
    if vae is None:
        if channels != 3:
            raise InputError(
                f"vae: the network diffuses latents of {channels} channels; set it to the folder "
                "of the autoencoder"
            )
        return None
    autoencoder = load_autoencoder(resolve(vae), channels)
    scale = tuple(0.5 / std for std in RAW_STD)
    return Latents(autoencoder, scale, RAW_MEAN, unit_range=True)
