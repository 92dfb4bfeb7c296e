"""Votes of crops, and the agreement of two classifiers."""

import torch

from diffguard_pl.metrics.noise_accuracy import agreement, correct_by_vote


def test_each_vote_of_the_crops():
    # Two of three crops predict class 1; class 0 has the largest logit, class 2 the largest mean.
    crops = torch.tensor([[[5.0, 0.0, 4.0], [0.0, 2.0, 1.9], [0.0, 2.0, 1.9]]])
    votes = {
        label: {vote: bool(right) for vote, right in correct_by_vote(crops, label).items()}
        for label in (torch.tensor([0]), torch.tensor([1]), torch.tensor([2]))
    }
    zero, one, two = votes.values()
    assert zero == {"mean": False, "majority": False, "maximum": True, "any": True}
    assert one == {"mean": False, "majority": True, "maximum": False, "any": True}
    assert two == {"mean": True, "majority": False, "maximum": False, "any": False}


def test_of_equal_majorities_the_first_class_counts():
    crops = torch.eye(3)[[2, 1, 2, 1]][None]
    assert correct_by_vote(crops, torch.tensor([1]))["majority"].item()


def test_two_classifiers_are_both_right_or_make_the_same_error_or_disagree():
    one, other, labels = torch.tensor([0, 1, 2, 2]), torch.tensor([0, 1, 2, 0]), torch.zeros(4)
    found = agreement(one, other, labels)
    assert found["both_correct"].tolist() == [True, False, False, False]
    assert found["same_error"].tolist() == [False, True, True, False]
    assert found["disagree"].tolist() == [False, False, False, True]
