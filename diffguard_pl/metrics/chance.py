"""Accuracies that guessing would reach, a sign of labels in another order than the classifier's."""

import math

FEWEST_LABELLED = 20
"""Number of labelled images from which on an accuracy tells something about the labels."""


def describe_chance(dataset: str, correct: int, labelled: int, num_classes: int) -> str:
    """Describe an accuracy that is at chance or below; empty if it is higher.

    Args:
        dataset: Name of the dataset.
        correct: Number of images that are classified correctly.
        labelled: Number of images with a label.
        num_classes: Number of the classifier's classes.
    """
    chance = 1 / num_classes
    # two standard deviations of a binomial distribution
    limit = labelled * chance + 2 * math.sqrt(labelled * chance * (1 - chance))
    if labelled < FEWEST_LABELLED or correct > limit or num_classes == 1:
        return ""
    return (
        f"{dataset}: the classifier is right on {correct} of {labelled} labelled images, as by "
        f"guessing one of {num_classes} classes; check that the labels follow the order of the "
        "classifier's classes (`classes` of ClassFolders), the classifier's weights, and how "
        "images are prepared"
    )
