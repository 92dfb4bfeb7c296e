"""Cost of the baselines, in percent of a classifier's pass: ``python benchmarks/baselines.py``.

``python benchmarks/baselines.py resnet50`` takes another classifier. Baselines are fitted to random
features: only their time counts. ``odin`` makes two passes, one with gradients.
"""

import sys
import time
from collections.abc import Callable
from statistics import median

import torch

from diffguard_pl import Classifier
from diffguard_pl.classifiers.resnets import SmallResNet
from diffguard_pl.scores.baselines.collection import Baselines, find
from diffguard_pl.scores.baselines.names import BASELINES

REPEATS = 15


def seconds(function: Callable[..., object], *arguments: object) -> float:
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def main(name: str) -> None:
    torch.manual_seed(0)
    if name == "digits":
        half = (0.5, 0.5, 0.5)
        classifier = Classifier(SmallResNet(8), "digits_classifier", None, 16, half, half)
        images, fitted_to = torch.rand(128, 3, 16, 16), 790
    else:
        classifier = Classifier(name, weights="random")
        images, fitted_to = torch.rand(8, 3, 224, 224), 10_000
    view = classifier.view(images)
    width, classes = view.features.shape[1], view.logits.shape[1]

    names = [baseline for baseline in BASELINES if "ensemble" not in find(baseline).needs]
    scores = {baseline: Baselines([baseline], classifier) for baseline in names}
    features, logits = torch.rand(fitted_to, width), torch.rand(fitted_to, classes)
    for baselines in scores.values():
        baselines.fit_features(features, logits, torch.arange(fitted_to) % classes)
        baselines(view, images)  # warm-up

    # In turn, so that other load on the machine affects all alike.
    percent: dict[str, list[float]] = {baseline: [] for baseline in names}
    for _ in range(REPEATS):
        one_pass = seconds(classifier.view, images)
        for baseline, baselines in scores.items():
            percent[baseline].append(100 * seconds(baselines, view, images) / one_pass)
    print(
        f"{name}: {len(images)} images, {width} features, {classes} classes, fitted to {fitted_to} "
        "images; in percent of a pass"
    )
    print(", ".join(f"{baseline} {median(of):.2g}" for baseline, of in percent.items()))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "digits")
