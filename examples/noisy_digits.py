"""A classifier of noisy digits, to compare the digits classifier with.

In the folder of this file, which Python must find:

    python -m diffguard_pl analyze --config digits_gdm \\
        --analysis.noisy_classifier noisy_digits.NoisyDigits
"""

import torch
from torch import Tensor, nn

from diffguard_pl.datamodules.digits import CLASSES, digits
from diffguard_pl.diffusion.schedule import linear_alpha_bar


class NoisyDigits(nn.Module):
    """The Bayes classifier of noisy images, if the training digits were the only ones.

    The noise is Gaussian, so an image x_t comes from a training image x with the density of a
    normal distribution around sqrt(alpha_bar) x with variance 1 - alpha_bar. Nothing is trained.
    """

    def __init__(self):
        super().__init__()
        training = digits("train")
        self.register_buffer("images", training.images.flatten(1) * 2 - 1)
        self.register_buffer("labels", torch.as_tensor(training.labels))
        self.register_buffer("alpha_bar", linear_alpha_bar().float())

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Compute logits [N, classes].

        Args:
            x: Images [N, 3, H, W] in [-1, 1], with noise.
            t: Training timesteps [N].
        """
        alpha_bar = self.alpha_bar[t][:, None]
        signal = alpha_bar.sqrt()
        # the distance of every x_t to every sqrt(alpha_bar) x
        distance = signal * torch.cdist(x.flatten(1) / signal, self.images)
        log_density = -(distance**2) / (2 * (1 - alpha_bar))
        # p(x_t | class) is the mean over the images of the class
        of_classes = [log_density[:, self.labels == label] for label in range(len(CLASSES))]
        return torch.stack([density.logsumexp(dim=1) for density in of_classes], dim=1)
