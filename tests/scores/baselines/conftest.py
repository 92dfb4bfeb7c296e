"""The digits' classifier, its view of the images, and all baselines fitted to it."""

import pytest
from helpers.baselines import IMAGES, LABELS, SINGLE, TRAIN, digits_classifier

from diffguard_pl import Classifier
from diffguard_pl.classifiers.classifier import View
from diffguard_pl.scores.baselines.collection import Baselines


@pytest.fixture(scope="session")
def classifier() -> Classifier:
    return digits_classifier()


@pytest.fixture(scope="session")
def train(classifier: Classifier) -> View:
    return classifier.view(TRAIN.images)


@pytest.fixture(scope="session")
def fitted(classifier: Classifier, train: View) -> Baselines:
    module = Baselines(SINGLE, classifier)
    module.fit_features(train.features, train.logits, LABELS)
    return module


@pytest.fixture(scope="session")
def view(classifier: Classifier) -> View:
    return classifier.view(IMAGES)
