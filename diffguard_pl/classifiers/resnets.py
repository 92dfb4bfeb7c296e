"""Residual networks: OpenOOD's for CIFAR and ImageNet-200, and that of the embedded benchmark."""

from typing import Any

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet

from .zoo import Preprocessing

CIFAR10 = Preprocessing(32, mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))
CIFAR100 = Preprocessing(32, mean=(0.5071, 0.4867, 0.4408), std=(0.2675, 0.2565, 0.2761))


class ResNet18_32x32(ResNet):
    """ResNet-18 for 32x32 images with logits [N, classes], as OpenOOD uses it for CIFAR.

    torchvision's network with a 3x3 stem that keeps the resolution, without pooling. Its weights
    load under torchvision's keys or OpenOOD's, which call the downsampling branch ``shortcut``.

    Args:
        num_classes: Number of classes; 100 implies mean and std of CIFAR-100, any other number
            those of CIFAR-10. Defaults to 10.
    """

    def __init__(self, num_classes: int = 10):
        super().__init__(BasicBlock, [2, 2, 2, 2], num_classes=num_classes)
        self.conv1 = nn.Conv2d(3, 64, kernel_size=3, padding=1, bias=False)
        self.maxpool = nn.Identity()
        self.preprocessing = CIFAR100 if num_classes == 100 else CIFAR10
        self.register_load_state_dict_pre_hook(_rename_shortcuts)


class ResNet18_224x224(ResNet):
    """ResNet-18 for 224x224 images with logits [N, classes], as OpenOOD uses it for ImageNet-200.

    torchvision's network, whose keys OpenOOD's checkpoints have. Of larger images the centre is
    classified that OpenOOD crops: 224 of 256 pixels.

    Args:
        num_classes: Number of classes. Defaults to 200.
    """

    def __init__(self, num_classes: int = 200):
        super().__init__(BasicBlock, [2, 2, 2, 2], num_classes=num_classes)
        self.preprocessing = Preprocessing(224, crop=224 / 256)


def _rename_shortcuts(_: nn.Module, state: dict[str, Tensor], *__: Any) -> None:
    """Rename OpenOOD's keys to torchvision's, in place."""
    for key in list(state):
        if ".shortcut." in key:
            state[key.replace(".shortcut.", ".downsample.")] = state.pop(key)


class SmallResNet(nn.Module):
    """Residual network of three stages with 32, 64 and 128 channels and logits [N, classes].

    Each stage but the first halves the resolution. It is the classifier of the embedded benchmark.

    Args:
        num_classes: Number of classes. Defaults to 8.
    """

    def __init__(self, num_classes: int = 8):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.SiLU()
        )
        self.stage1 = ResidualBlock(32, 32, stride=1)
        self.stage2 = ResidualBlock(32, 64, stride=2)
        self.stage3 = ResidualBlock(64, 128, stride=2)
        self.fc = nn.Linear(128, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage3(self.stage2(self.stage1(self.stem(x))))
        return self.fc(x.mean(dim=(2, 3)))


class ResidualBlock(nn.Module):
    """SiLU of the sum of a shortcut and two 3x3 convolutions.

    Args:
        channels_in: Number of input channels.
        channels_out: Number of output channels.
        stride: Stride of the first convolution; a stride above 1 makes the shortcut a convolution.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
            nn.SiLU(),
            nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1:
            self.shortcut = nn.Conv2d(channels_in, channels_out, 1, stride)
        self.activation = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.shortcut(x) + self.body(x))
