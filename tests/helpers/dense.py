"""A diffusion model of two matrices, and the same in NumPy with its exact derivative."""

import numpy as np
import torch
from torch import Tensor, nn

from diffguard_pl import Classifier, DiffGuard
from diffguard_pl.backbones import Backbone
from diffguard_pl.diffusion.classifier_free_guidance import ClassifierFreeGuidance
from diffguard_pl.diffusion.schedule import Schedule, linear_alpha_bar, uniform

SIDE = 8
SIZE = 3 * SIDE * SIDE
CLASSES = 5
ALPHA_BAR = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))


class Dense:
    """eps(x, t, y) = A tanh(B x + c_y + t / 1000), in NumPy; x is [D]."""

    def __init__(self):
        generator = np.random.default_rng(0)
        self.a = generator.standard_normal((SIZE, SIZE)) / SIZE**0.5
        self.b = generator.standard_normal((SIZE, SIZE)) / SIZE**0.5
        self.c = generator.standard_normal((CLASSES + 1, SIZE))

    def eps(self, x: np.ndarray, t: int, label: int = CLASSES) -> np.ndarray:
        return self.a @ np.tanh(self.b @ x + self.c[label] + t / 1000)

    def jacobian(self, x: np.ndarray, t: int) -> np.ndarray:
        slope = 1 - np.tanh(self.b @ x + self.c[CLASSES] + t / 1000) ** 2
        return (self.a * slope) @ self.b


class DenseBackbone(Backbone):
    """:class:`Dense` as a diffusion model in pixel space."""

    is_pixel_space = True

    def __init__(self):
        super().__init__(SIDE, None, "resize")
        dense = Dense()
        self.alpha_bar = linear_alpha_bar()
        self.null_label, self.num_classes = CLASSES, CLASSES
        for name in ("a", "b", "c"):
            matrix = torch.from_numpy(getattr(dense, name))
            self.register_parameter(name, nn.Parameter(matrix, requires_grad=False))

    def schedule(self, steps: int) -> Schedule:
        return uniform(self.alpha_bar, steps)

    def encode(self, images: Tensor) -> Tensor:
        return images

    def decode(self, x: Tensor) -> Tensor:
        return x

    def eps(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        inner = x.flatten(1) @ self.b.T + self.c[labels] + t[:, None] / 1000
        return (inner.tanh() @ self.a.T).view(x.shape)


def dense_diffguard(**settings) -> DiffGuard:
    """Return DiffGuard in float64 with the dense model and a linear classifier."""
    torch.manual_seed(0)
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(SIZE, CLASSES))
    parts = {
        "classifier": Classifier(classifier, input_size=SIDE),
        "backbone": DenseBackbone(),
        "guidance": ClassifierFreeGuidance(),
        "steps": 10,
        "discrepancies": [],
        "compare_to": "none",
    }
    return DiffGuard(**parts | settings).double()


def noise(draw: int) -> np.ndarray:
    """Return the noise [D] that all images share in a draw."""
    generator = torch.Generator().manual_seed(draw)
    drawn = torch.randn(1, 3, SIDE, SIDE, generator=generator, dtype=torch.double)
    return drawn.flatten().numpy()


def levels(t: int) -> tuple[float, float]:
    """Return signal and noise level at a timestep."""
    return ALPHA_BAR[t] ** 0.5, (1 - ALPHA_BAR[t]) ** 0.5


def noised(x: np.ndarray, t: int, draw: int) -> np.ndarray:
    signal, sigma = levels(t)
    return signal * x + sigma * noise(draw)
