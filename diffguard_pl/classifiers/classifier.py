"""The classifier under protection: preprocessing, logits, features and Grad-CAM from one pass."""

from collections.abc import Collection, Iterable, Sequence
from contextlib import AbstractContextManager
from copy import deepcopy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad

from ..dtypes import at_least_float32
from ..errors import InputError, choose
from ..layout import keep_contiguous
from .ensemble import Ensemble
from .layers import Captured, capture, choose_layers, feature_maps
from .zoo import INTERPOLATIONS, load_model, load_weights

GREY = 0.5
"""Value of the image that is classified to find the layers."""


class View(NamedTuple):
    """Results of a classifier for a batch of images, in float32.

    Attributes:
        logits: Logits [N, classes]; of an ensemble see :func:`.ensemble.ensemble_logits`.
        features: Features [N, D]: the input of the linear layer that gives the logits (of both,
            side by side, in a distilled ViT); without such a layer the spatial mean of the Grad-CAM
            layer. Those of the members of an ensemble stand side by side.
        maps: Feature maps [N, C, h, w] of each map layer, member by member.
        member_logits: Logits of the members of an ensemble [N, M, classes]; None for a single
            classifier.
    """

    logits: Tensor
    features: Tensor
    maps: list[Tensor]
    member_logits: Tensor | None = None


class Classifier(nn.Module):
    """A frozen classifier with its preprocessing.

    Square images of side ``input_size`` are classified as they are. Others are resized so that
    ``input_size`` is the fraction ``crop`` of their shorter side, and cropped at the centre.

    Several checkpoints make a deep ensemble of M members (Lakshminarayanan et al., NeurIPS 2017),
    which predicts the class of the highest mean probability. It is used like one network:

    - Logits are the logarithm of the mean probabilities plus the mean of the members' logsumexp,
      so that softmax and energy score are the mean of the members'.
    - Guidance follows the gradient of the logarithm of the mean probability.
    - Features and Grad-CAM layers of the members stand side by side; ``maps`` compares the layers
      of all members.
    - No linear layer gives the logits, so the baselines ``react``, ``ash``, ``scale`` and ``vim``
      are refused.

    Args:
        model: Module that maps images to logits, or a name: torchvision's, such as ``resnet50``, or
            timm's, such as ``timm/vit_base_patch16_224.augreg_in21k_ft_in1k``.
        checkpoint: File of the weights, folder with ``model.safetensors``, or name of shipped
            weights; or a list of these for a deep ensemble. Defaults to the weights that the module
            has; for a model by name see ``weights``.
        weights: For a model by name: name of the weights that torchvision or timm downloads, or
            ``random`` for a dry run. Defaults to the library's default weights. With a checkpoint
            they only decide the preprocessing.
        input_size: Side of the input images in pixels. Defaults to the model's own preprocessing,
            as do the next four; a module without an attribute ``preprocessing`` gets 224 pixels,
            the whole image, bilinear interpolation, and ImageNet's mean and std.
        mean: Mean of each channel, subtracted from images in [0, 1].
        std: Standard deviation of each channel, which centred images are divided by.
        crop: Fraction of the image's side that is classified, in (0, 1]. Defaults to the model's
            own, but to 1 if ``input_size`` is given.
        interpolation: Interpolation of the resizing, ``bilinear`` or ``bicubic``.
        cam_layer: Name of the layer for Grad-CAM, as in ``model.named_modules()``. Defaults to the
            last layer whose output is a feature map; in a vision transformer to the norm before the
            last attention.
        map_layers: Names of the layers for the discrepancy ``maps``. Defaults to the model's
            outermost layers with feature maps; in a vision transformer to the layer for Grad-CAM.
        use_ema: Whether to use the moving average of the weights, if the checkpoint has both it and
            the weights themselves. Defaults to True.

    Attributes:
        class_names: English name of each class; None if unknown.
        num_classes: Number of classes.
        heads: Names of the linear layers that give the logits, in each member.
        members: Number of members of the ensemble; 1 for a single classifier.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: nn.Module | str,
        checkpoint: str | list[str] | None = None,
        weights: str | None = None,
        input_size: int | None = None,
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
        crop: float | None = None,
        interpolation: str | None = None,
        cam_layer: str | None = None,
        map_layers: list[str] | None = None,
        use_ema: bool = True,
    ):
        super().__init__()
        checkpoints = _checked_checkpoints(checkpoint)
        loaded = load_model(model, weights, download=not checkpoints)
        self.class_names = loaded.class_names
        members = [loaded.model.eval()]
        members += [deepcopy(loaded.model) for _ in checkpoints[1:]]
        # No checkpoint: the one member keeps the weights that it has.
        for member, file in zip(members, checkpoints, strict=False):
            load_weights(member, file, use_ema)
        for member in members:
            keep_contiguous(member)
        self.model = members[0]

        # Preprocessing: each setting overrides the model's own.
        default = loaded.preprocessing
        if input_size is not None and input_size < 1:
            raise InputError(f"classifier.input_size: {input_size} must be at least 1 pixel")
        self.input_size = input_size or default.input_size
        if crop is None:
            crop = 1.0 if input_size else default.crop
        if not 0 < crop <= 1:
            raise InputError(f"classifier.crop: {crop} must be a fraction above 0 and up to 1")
        self.crop = crop
        self.interpolation = interpolation or default.interpolation
        choose("classifier.interpolation", self.interpolation, INTERPOLATIONS)
        channels = (1, 3, 1, 1)
        mean_tensor = torch.tensor(mean or default.mean).view(channels)
        std_tensor = torch.tensor(std or default.std).view(channels)
        self.register_buffer("mean", mean_tensor, persistent=False)
        self.register_buffer("std", std_tensor, persistent=False)

        self._accepts_size: dict[torch.Size, bool] = {}
        layers = choose_layers(self.model, self._classify_grey_image, cam_layer, map_layers)
        self.num_classes = layers.num_classes
        self.heads = layers.heads
        self.cam_layer = layers.cam_layer
        self.map_layers = layers.map_layers

        # The layers were chosen in the first member; the others have the same ones.
        self.members = len(members)
        if self.members > 1:
            self.model = Ensemble(members)
        self.requires_grad_(False)

    def networks_to(self, dtype: torch.dtype) -> None:
        """Convert the model's weights to another precision; preprocessing stays in float32."""
        self.model.to(dtype)

    # ---- logits

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits [N, classes] of images [N, 3, H, W] in [0, 1], differentiably."""
        return self.logits(self.resize_and_crop(images))

    def logits(self, images: Tensor) -> Tensor:
        """As :meth:`forward`, without resizing the images."""
        dtype = torch.float32
        for parameter in self.model.parameters():
            if parameter.is_floating_point():
                dtype = parameter.dtype
                break
        return self.model(((images - self.mean) / self.std).to(dtype).contiguous())

    def logits_at_any_size(self, images: Tensor) -> Tensor:
        """As :meth:`logits` if the model accepts images of this size, else as :meth:`forward`."""
        size = images.shape[-2:]
        if size not in self._accepts_size:
            self._accepts_size[size] = self._try(images.detach()[:1])
        return self.logits(images) if self._accepts_size[size] else self(images)

    def _try(self, image: Tensor) -> bool:
        """Return whether the model accepts an image [1, 3, H, W] of this size."""
        try:
            with torch.no_grad():
                self.logits(image)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, AssertionError):
            return False
        return True

    def _classify_grey_image(self) -> Tensor:
        size = self.input_size
        try:
            return self(torch.full((1, 3, size, size), GREY))
        except (RuntimeError, ValueError, AssertionError) as error:
            reason = " ".join(str(error).split())
            raise InputError(
                f"classifier: the model does not support {size}x{size} images ({reason}); set "
                "classifier.input_size"
            ) from error

    # ---- features and Grad-CAM

    @torch.no_grad()
    def view(self, images: Tensor) -> View:
        """Compute logits, features and feature maps of images [N, 3, H, W] in [0, 1]."""
        with self._capture() as captured:
            logits = self(images)
        return self._view(logits, captured)

    def view_with_cam(self, images: Tensor, labels: Tensor | None = None) -> tuple[View, Tensor]:
        """As :meth:`view`, with Grad-CAM from the same pass (Selvaraju et al. 2017, eq. 1-2).

        Only what comes after the Grad-CAM layer is differentiated. In an ensemble the maps of its
        members' layers count as the channels of one layer.

        Args:
            images: Images [N, 3, H, W] in [0, 1].
            labels: Classes [N] to explain; those below 0, and all by default, stand for the
                predicted class.

        Returns:
            The view, and activation maps [N, 1, H, W], each scaled to [0, 1]; 0 outside of the
            classifier's crop.
        """
        if self.cam_layer is None:
            raise InputError(
                "classifier: no layer with feature maps found for Grad-CAM; set "
                "classifier.cam_layer"
            )
        # gradients are needed even if the caller has switched them off
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            self._capture(differentiate_from=self._in_members([self.cam_layer])) as captured,
        ):
            logits = self(images.clone())
            predicted = logits.argmax(dim=1)
            labels = predicted if labels is None else torch.where(labels < 0, predicted, labels)
            class_scores = logits.gather(1, labels[:, None])
            outputs = [captured.outputs[name] for name in self._in_members([self.cam_layer])]
            gradients = torch.autograd.grad(class_scores.sum(), outputs)
        with torch.no_grad():
            activations = _one_layer(outputs)
            gradient = _one_layer(gradients)
            # Eq. 1: the weight of a channel is the spatial mean of its gradient.
            weights = gradient.mean(dim=(2, 3), keepdim=True)
            # Eq. 2: ReLU of the weighted sum of the activations.
            cam = (weights * activations).sum(dim=1, keepdim=True).relu()
            return self._view(logits, captured), self._to_image(at_least_float32(cam), images)

    def linear_head(self) -> tuple[Tensor, Tensor] | None:
        """Return weight and bias of the linear map from features to logits.

        Any other operation between features and logits is ignored. The logits of a distilled ViT
        are the mean of its two heads, whose features are side by side.

        Returns:
            Weight [classes, D] and bias [classes] in float32; None if no layer gives the logits, as
            in an ensemble.
        """
        if not self.heads or self.members > 1:
            return None
        modules: dict[str, Any] = dict(self.model.named_modules())
        weights, biases = [], []
        for name in self.heads:
            head = modules[name]
            weight = head.weight.detach().float().flatten(1)
            weights.append(weight)
            if head.bias is None:
                biases.append(weight.new_zeros(len(weight)))
            else:
                biases.append(head.bias.detach().float())
        return torch.cat(weights, dim=1) / len(self.heads), torch.stack(biases).mean(dim=0)

    def _in_members(self, layers: Iterable[str]) -> list[str]:
        """Return the names of layers in the model: of an ensemble those of all members."""
        if self.members == 1:
            return list(layers)
        return [f"members.{m}.{name}" for m in range(self.members) for name in layers]

    def _capture(
        self, differentiate_from: Collection[str] = ()
    ) -> AbstractContextManager[Captured]:
        """Capture what a view consists of, in the forward pass that runs inside."""
        layers = list(self.map_layers)
        if self.cam_layer:
            layers.append(self.cam_layer)
        outputs_of = self._in_members(layers)
        if self.members > 1:
            outputs_of += [f"members.{m}" for m in range(self.members)]
        return capture(self.model, outputs_of, self._in_members(self.heads), differentiate_from)

    def _view(self, logits: Tensor, captured: Captured) -> View:
        """Put together a view from the logits and captured tensors of one pass."""
        outputs, inputs = captured
        maps = [_maps_in_float32(outputs[name]) for name in self._in_members(self.map_layers)]
        if self.heads:
            heads = self._in_members(self.heads)
            parts = [at_least_float32(inputs[name].detach().flatten(1)) for name in heads]
        else:
            layers = self._in_members([self.cam_layer or ""])
            parts = [_maps_in_float32(outputs[name]).mean(dim=(2, 3)) for name in layers]
        member_logits = None
        if self.members > 1:
            of_members = [outputs[f"members.{m}"].detach() for m in range(self.members)]
            member_logits = at_least_float32(torch.stack(of_members, dim=1))
        logits = at_least_float32(logits.detach())
        return View(logits, torch.cat(parts, dim=1), maps, member_logits)

    # ---- image sizes

    def resize_and_crop(self, images: Tensor) -> Tensor:
        """Resize and crop images [N, 3, H, W] to [N, 3, input_size, input_size], differentiably."""
        size = self.input_size
        if images.shape[-2:] == (size, size):
            return images
        height, width = self._resized_shape(images)
        images = interpolate(images, (height, width), mode=self.interpolation, antialias=True)
        top, left = round((height - size) / 2), round((width - size) / 2)
        return images[:, :, top : top + size, left : left + size]

    def _resized_shape(self, images: Tensor) -> tuple[int, int]:
        """Return height and width of the images after resizing, before the crop."""
        height, width = images.shape[-2:]
        if height == width == self.input_size:
            return height, width
        shorter_before = min(height, width)
        shorter_after = round(self.input_size / self.crop)
        return shorter_after * height // shorter_before, shorter_after * width // shorter_before

    def _to_image(self, cam: Tensor, images: Tensor) -> Tensor:
        """Undo resizing and cropping for activation maps.

        Args:
            cam: Activation maps [N, 1, h, w] of the crop.
            images: Images [N, 3, H, W] before resizing.

        Returns:
            Maps [N, 1, H, W], each scaled to [0, 1] inside of the crop, 0 outside.
        """
        image_height, image_width = images.shape[-2:]
        resized_height, resized_width = self._resized_shape(images)
        # size and place of the crop in the image
        height = round(image_height * self.input_size / resized_height)
        width = round(image_width * self.input_size / resized_width)
        top, left = (image_height - height) // 2, (image_width - width) // 2
        bottom, right = image_height - height - top, image_width - width - left
        cam = interpolate(cam, (height, width), mode="bilinear", align_corners=False)
        return pad(scale_to_unit_range(cam), (left, right, top, bottom))


def scale_to_unit_range(maps: Tensor) -> Tensor:
    """Scale each of the maps [N, 1, H, W] to [0, 1]; a constant one becomes 0."""
    low = maps.amin(dim=(1, 2, 3), keepdim=True)
    high = maps.amax(dim=(1, 2, 3), keepdim=True)
    return (maps - low) / (high - low + 1e-7)


def _maps_in_float32(output: Tensor) -> Tensor:
    """Convert a layer's output to feature maps [N, C, h, w] outside of the autograd graph."""
    return at_least_float32(feature_maps(output.detach()))


def _one_layer(outputs: Sequence[Tensor]) -> Tensor:
    """Put the feature maps [N, C, h, w] of the members' layers side by side, [N, M * C, h, w]."""
    maps = [feature_maps(output) for output in outputs]
    return maps[0] if len(maps) == 1 else torch.cat(maps, dim=1)


def _checked_checkpoints(checkpoint: str | list[str] | None) -> list[str]:
    """Return the checkpoints of a classifier or an ensemble; empty for the weights it has."""
    if not isinstance(checkpoint, list | tuple):
        return [checkpoint] if checkpoint else []
    if not checkpoint or len(set(checkpoint)) < len(checkpoint):
        raise InputError(
            f"classifier.checkpoint: {list(checkpoint)} must be one or more files, each once; "
            "an ensemble needs the weights of different trainings"
        )
    return list(checkpoint)
