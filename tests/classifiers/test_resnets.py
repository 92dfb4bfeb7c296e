"""OpenOOD's CIFAR network, and its files."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import batch_norm, conv2d, linear, relu

from diffguard_pl import Classifier
from diffguard_pl.classifiers.resnets import ResNet18_32x32


def openood_state(num_classes: int) -> dict[str, Tensor]:
    """Return random weights and running statistics under OpenOOD's keys."""
    generator = torch.Generator().manual_seed(5)
    state = ResNet18_32x32(num_classes).state_dict()
    for key, tensor in state.items():
        if key.endswith("running_var"):
            state[key] = torch.rand(tensor.shape, generator=generator) + 0.5
        elif tensor.is_floating_point():
            state[key] = (
                torch.randn(tensor.shape, generator=generator) / max(1, tensor[0].numel()) ** 0.5
            )
    return {key.replace("downsample", "shortcut"): tensor for key, tensor in state.items()}


def by_hand(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """Compute the logits of a CIFAR ResNet-18 (He et al. 2016).

    A 3x3 stem without pooling, then four stages of two blocks, of which all but the first halve the
    resolution.
    """

    def norm(name: str, x: Tensor) -> Tensor:
        return batch_norm(
            x,
            *(
                state[f"{name}.{part}"]
                for part in ("running_mean", "running_var", "weight", "bias")
            ),
        )

    x = relu(norm("bn1", conv2d(x, state["conv1.weight"], padding=1)))
    for stage, block in [(stage, block) for stage in range(1, 5) for block in range(2)]:
        name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
        inner = relu(
            norm(f"{name}.bn1", conv2d(x, state[f"{name}.conv1.weight"], stride=stride, padding=1))
        )
        inner = norm(f"{name}.bn2", conv2d(inner, state[f"{name}.conv2.weight"], padding=1))
        if stride == 2:
            x = norm(f"{name}.shortcut.1", conv2d(x, state[f"{name}.shortcut.0.weight"], stride=2))
        x = relu(inner + x)
    return linear(x.mean((2, 3)), state["fc.weight"], state["fc.bias"])


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_checkpoint_of_openoods_cifar_network(prefix, tmp_path):
    state, images = openood_state(10), torch.rand(2, 3, 32, 32)
    torch.save({prefix + key: tensor for key, tensor in state.items()}, tmp_path / "best.ckpt")
    classifier = Classifier(ResNet18_32x32(), str(tmp_path / "best.ckpt"))
    expected = by_hand(state, (images - classifier.mean) / classifier.std)
    torch.testing.assert_close(classifier(images), expected, atol=1e-4, rtol=1e-4)
    view, cam = classifier.view_with_cam(torch.rand(2, 3, 64, 64))
    assert (classifier.cam_layer, view.features.shape, view.maps[-1].shape) == (
        "layer4",
        (2, 512),
        (2, 512, 4, 4),
    )
    assert cam.shape == (2, 1, 64, 64)


def test_a_checkpoint_under_torchvisions_keys(tmp_path):
    state, images = openood_state(10), torch.rand(2, 3, 32, 32)
    renamed = {key.replace("shortcut", "downsample"): tensor for key, tensor in state.items()}
    torch.save(renamed, tmp_path / "net.pth")
    classifier = Classifier(ResNet18_32x32(), str(tmp_path / "net.pth"))
    expected = by_hand(state, (images - classifier.mean) / classifier.std)
    torch.testing.assert_close(classifier(images), expected, atol=1e-4, rtol=1e-4)


def test_it_brings_the_preprocessing_of_its_data():
    cifar10, cifar100 = Classifier(ResNet18_32x32()), Classifier(ResNet18_32x32(100))
    assert (cifar10.input_size, cifar10.crop, cifar10.num_classes, cifar100.num_classes) == (
        32,
        1,
        10,
        100,
    )
    assert cifar10.mean.flatten().tolist() == pytest.approx([0.4914, 0.4822, 0.4465])
    assert cifar100.std.flatten().tolist() == pytest.approx([0.2675, 0.2565, 0.2761])
