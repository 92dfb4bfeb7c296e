"""What the classifier's scores cost, in shares of the classifier's own pass: `python benchmarks/baselines.py [resnet50]`.

Fitted scores are fitted to random features: only their time counts. ``odin`` makes two passes of its own, one with gradients.
"""

import sys
import time
from collections.abc import Callable
from statistics import median

import torch

from diffguard_pl import Classifier
from diffguard_pl.classifiers.resnets import SmallResNet
from diffguard_pl.scores.baselines.collection import NAMES, NEEDS_FIT, Baselines

REPEATS = 15


def seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def main(name: str) -> None:
    torch.manual_seed(0)
    if name == "digits":
        classifier = Classifier(
            SmallResNet(8), "digits_classifier", input_size=16, mean=(0.5,) * 3, std=(0.5,) * 3
        )
        images, fitted_to = torch.rand(128, 3, 16, 16), 790
    else:
        classifier = Classifier(name, weights="random")
        images, fitted_to = torch.rand(8, 3, 224, 224), 10_000
    view = classifier.view(images)
    width, classes = view.features.shape[1], view.logits.shape[1]
    features, labels = torch.rand(fitted_to, width), torch.arange(fitted_to) % classes
    logits = torch.rand(fitted_to, classes)
    scores = {}
    for score in NAMES:
        scores[score] = Baselines([score], classifier)
        if score in NEEDS_FIT:
            scores[score].fit_features(features, logits, labels)
        scores[score](view, images)
    shares: dict[str, list[float]] = {score: [] for score in NAMES}
    for _ in range(REPEATS):  # in turn, so that what else the machine does meets all alike
        of_pass = seconds(lambda: classifier.view(images))
        for score, baselines in scores.items():
            shares[score].append(
                seconds(lambda baselines=baselines: baselines(view, images)) / of_pass
            )  # type: ignore[misc]
    print(
        f"{name}: {len(images)} images, {width} features, {classes} classes, fitted to {fitted_to} images; in percent of a pass"
    )
    print(", ".join(f"{score} {100 * median(of):.2g}" for score, of in shares.items()))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "digits")
