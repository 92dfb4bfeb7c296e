"""OpenOOD's CIFAR classifier (Yang et al. 2022, Zhang et al. 2023), for its checkpoints."""

from typing import Any

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet

from .zoo import Preprocessing

CIFAR10 = Preprocessing(32, 1.0, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
CIFAR100 = Preprocessing(32, 1.0, (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))


class ResNet18_32x32(ResNet):
    """torchvision's ResNet-18 for 32-pixel images: a 3x3 stem that keeps the size; logits [N, classes].

    Its weights load under torchvision's keys or OpenOOD's, which call the downsampling branch ``shortcut``.

    Args:
        num_classes: number of classes; 100 takes the mean and std of CIFAR-100, any other number those of CIFAR-10.
    """

    def __init__(self, num_classes: int = 10):
        super().__init__(BasicBlock, [2, 2, 2, 2], num_classes=num_classes)
        self.conv1 = nn.Conv2d(3, 64, kernel_size=3, padding=1, bias=False)
        self.maxpool = nn.Identity()
        self.preprocessing = CIFAR100 if num_classes == 100 else CIFAR10
        self.register_load_state_dict_pre_hook(_rename_shortcuts)


def _rename_shortcuts(_: nn.Module, state: dict[str, Tensor], *__: Any) -> None:
    for key in [key for key in state if ".shortcut." in key]:
        state[key.replace(".shortcut.", ".downsample.")] = state.pop(key)
