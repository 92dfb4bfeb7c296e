"""The classifier under protection: preprocessing, logits, features and Grad-CAM from one pass."""

from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad

from ..dtypes import at_least_float32
from ..errors import InputError, choose
from ..layout import keep_contiguous
from .layers import Captured, capture, choose_layers, feature_maps
from .zoo import INTERPOLATIONS, load_model, load_weights

GREY = 0.5
"""Value of the image that is classified to find the layers."""


class View(NamedTuple):
    """Results of a classifier for a batch of images, in float32.

    Attributes:
        logits: Logits [N, classes].
        features: Features [N, D]: the input of the linear layer that gives the logits (of both,
            side by side, in a distilled ViT); without such a layer the spatial mean of the Grad-CAM
            layer.
        maps: Feature maps [N, C, h, w] of each map layer.
    """

    logits: Tensor
    features: Tensor
    maps: list[Tensor]


class Classifier(nn.Module):
    """A frozen classifier with its preprocessing.

    Square images of side ``input_size`` are classified as they are. Others are resized so that
    ``input_size`` is the fraction ``crop`` of their shorter side, and cropped at the centre.

    Args:
        model: Module that maps images to logits, or a name: torchvision's, such as ``resnet50``, or
            timm's, such as ``timm/vit_base_patch16_224.augreg_in21k_ft_in1k``.
        checkpoint: File of the weights, folder with ``model.safetensors``, or name of shipped
            weights. Defaults to the weights that the module has; for a model by name see
            ``weights``.
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
        heads: Names of the linear layers that give the logits.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: nn.Module | str,
        checkpoint: str | None = None,
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
        loaded = load_model(model, weights, download=not checkpoint)
        self.model, self.class_names = loaded.model.eval(), loaded.class_names
        if checkpoint:
            load_weights(self.model, checkpoint, use_ema)
        keep_contiguous(self.model)
        self.requires_grad_(False)

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

        Only what comes after the Grad-CAM layer is differentiated.

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
            self._capture(differentiate_from=self.cam_layer) as captured,
        ):
            logits = self(images.clone())
            predicted = logits.argmax(dim=1)
            labels = predicted if labels is None else torch.where(labels < 0, predicted, labels)
            class_scores = logits.gather(1, labels[:, None])
            activations = captured.outputs[self.cam_layer]
            (gradient,) = torch.autograd.grad(class_scores.sum(), activations)
        with torch.no_grad():
            # Eq. 1: the weight of a channel is the spatial mean of its gradient.
            weights = feature_maps(gradient).mean(dim=(2, 3), keepdim=True)
            # Eq. 2: ReLU of the weighted sum of the activations.
            cam = (weights * feature_maps(activations)).sum(dim=1, keepdim=True).relu()
            return self._view(logits, captured), self._to_image(at_least_float32(cam), images)

    def linear_head(self) -> tuple[Tensor, Tensor] | None:
        """Return weight and bias of the linear map from features to logits.

        Any other operation between features and logits is ignored. The logits of a distilled ViT
        are the mean of its two heads, whose features are side by side.

        Returns:
            Weight [classes, D] and bias [classes] in float32; None if no layer gives the logits.
        """
        if not self.heads:
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

    def _capture(self, differentiate_from: str | None = None) -> AbstractContextManager[Captured]:
        """Capture what a view consists of, in the forward pass that runs inside."""
        outputs_of = list(self.map_layers)
        if self.cam_layer:
            outputs_of.append(self.cam_layer)
        return capture(self.model, outputs_of, self.heads, differentiate_from)

    def _view(self, logits: Tensor, captured: Captured) -> View:
        """Put together a view from the logits and captured tensors of one pass."""
        maps = {}
        for name, output in captured.outputs.items():
            maps[name] = at_least_float32(feature_maps(output.detach()))
        if self.heads:
            inputs = [captured.inputs[name].detach().flatten(1) for name in self.heads]
            features = torch.cat([at_least_float32(tensor) for tensor in inputs], dim=1)
        else:
            features = maps[self.cam_layer or ""].mean(dim=(2, 3))
        logits = at_least_float32(logits.detach())
        return View(logits, features, [maps[name] for name in self.map_layers])

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
