"""Fits path scores to training images, once for all runs with the same model and images."""

from collections.abc import Callable
from typing import Any

from ..datamodules.base import OODData
from ..description import describe_method, plain_settings
from ..diffguard import DiffGuard
from ..errors import InputError
from ..runs.record import weights_hashes
from ..scores.training_features import cached_file, classifier_key, computed_once


def fit_path_scores(
    diffguard: DiffGuard,
    data: OODData,
    precision: str,
    first_rank: bool,
    wait_for_others: Callable[[], None],
) -> None:
    """Fit the path scores of a model to some of the training images.

    The first rank inverts the images and keeps the features in the cache; the others wait and read
    them. Without a description of the images, every rank computes them and none are kept.

    Args:
        diffguard: Model with path scores that are not fitted.
        data: Data module with training images.
        precision: Precision of the networks, part of the key of the cache.
        first_rank: Whether this process is the first rank.
        wait_for_others: Barrier of all ranks.

    Raises:
        InputError: Training images are missing or do not suffice.
    """
    loader = data.train_dataloader(diffguard.path_fit_images)
    if loader is None:
        raise InputError(
            f"path_scores: {', '.join(diffguard.path_scores.unfitted)} must be fitted to training "
            "images; set data.train, or call module.diffguard.fit_path_scores(loader)"
        )

    def compute() -> Any:
        from rich.progress import track

        shown = track(loader, "fitting path scores", disable=not first_rank, transient=True)
        return diffguard.path_features(shown)

    contents = data.train_contents()
    if contents is None:
        diffguard.path_scores.fit_features(compute())
        return
    key = {
        "classifier": classifier_key(diffguard.classifier, contents, precision),
        "weights": weights_hashes(diffguard),
        "method": describe_method(diffguard),
        "backbone": plain_settings(diffguard.backbone),
        "code": diffguard.path_scores.code_of_others(),
        "images": diffguard.path_fit_images,
    }
    features = computed_once(cached_file(key), compute, first_rank, wait_for_others)
    diffguard.path_scores.fit_features(features)
