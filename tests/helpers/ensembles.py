"""Checkpoints of several small classifiers, the members of an ensemble."""

from pathlib import Path

import torch

from diffguard_pl.classifiers.resnets import SmallResNet


def small_checkpoints(folder: Path, count: int = 3, classes: int = 5) -> list[str]:
    """Write the weights of networks that were initialised with different seeds."""
    files = []
    for seed in range(count):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network = SmallResNet(classes)
            # Larger weights: probabilities far from uniform, on which members disagree.
            network.fc.weight.data *= 300
        files.append(str(folder / f"s{seed}.ckpt"))
        torch.save(network.state_dict(), files[-1])
    return files
