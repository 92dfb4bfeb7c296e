"""Fusion and cascade: what they compute, and what they refuse."""

import numpy as np
import pytest

from diffguard_pl import InputError
from diffguard_pl.metrics.table import ScoreTable
from diffguard_pl.scores.combination import SURE, Cascade, Combination, Fusion
from diffguard_pl.scores.conformal import scale


def some(seed: int, size: int = 400) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {
        "maps": generator.normal(size=size),
        "msp": generator.beta(9, 1, size=size),
        "knn": -generator.chisquare(3, size=size),
    }


def test_fusion_is_the_mean_of_the_scaled_scores():
    reference, scores = some(0), some(1)
    for by in ("rank", "zscore"):
        parts = [scale(reference[name], scores[name], by) for name in ("maps", "knn")]
        np.testing.assert_allclose(
            Fusion(["maps", "knn"], by)(reference, scores), (parts[0] + parts[1]) / 2
        )
        np.testing.assert_allclose(
            Fusion(["maps", "knn"], by, [3, 1])(reference, scores), (3 * parts[0] + parts[1]) / 4
        )


def test_a_score_of_another_scale_counts_the_same():
    reference, scores = some(0), some(1)
    times = [{**of, "maps": of["maps"] * 1e6 - 5} for of in (reference, scores)]
    for by in ("rank", "zscore"):
        np.testing.assert_allclose(
            Fusion(["maps", "msp"], by)(*times),
            Fusion(["maps", "msp"], by)(reference, scores),
            atol=1e-9,
        )


@pytest.mark.parametrize("budget", [0.05, 0.2, 0.5, 0.9])
def test_the_budget_is_the_fraction_of_in_distribution_images_that_is_diffused(budget):
    reference, scores = some(0, 4000), some(1, 4000)
    cascade = Cascade("msp", budget, "maps")
    sent = cascade.unsure(reference["msp"], scores["msp"])
    assert abs(sent.mean() - budget) < 0.03
    rejected = scale(reference["msp"], scores["msp"]) < SURE * (1 - budget)
    assert not (sent & rejected).any()
    assert rejected.mean() < SURE + 0.01


def test_a_cascade_needs_the_other_score_only_where_the_baseline_is_unsure():
    reference, scores = some(0), some(1)
    cascade = Cascade("msp", 0.3, "maps")
    sent = cascade.unsure(reference["msp"], scores["msp"])
    hidden = scores | {"maps": np.where(sent, scores["maps"], np.nan)}
    found = cascade(reference, hidden)
    np.testing.assert_array_equal(found, cascade(reference, scores))
    np.testing.assert_array_equal(found[~sent], scale(reference["msp"], scores["msp"])[~sent])
    np.testing.assert_array_equal(found[sent], scale(reference["maps"], scores["maps"])[sent])


def test_a_path_score_decides_between_the_baseline_and_the_reconstruction():
    reference, scores = some(0, 4000), some(1, 4000)
    cascade = Cascade("msp", 0.4, "maps", middle="knn", middle_budget=0.3)
    diffused = cascade.unsure(reference["msp"], scores["msp"])
    reconstructed = diffused & cascade.undecided(reference, scores["knn"])
    assert abs(reconstructed.sum() / diffused.sum() - 0.3) < 0.05

    # Each stage needs its own score alone.
    hidden = scores | {
        "knn": np.where(diffused, scores["knn"], np.nan),
        "maps": np.where(reconstructed, scores["maps"], np.nan),
    }
    found = cascade(reference, hidden)
    assert not np.isnan(found).any()
    np.testing.assert_array_equal(found, cascade(reference, scores))
    ranks = {name: scale(reference[name], scores[name]) for name in scores}
    np.testing.assert_array_equal(found[reconstructed], ranks["maps"][reconstructed])
    middle = diffused & ~reconstructed
    np.testing.assert_array_equal(found[middle], ranks["knn"][middle])
    np.testing.assert_array_equal(found[~diffused], ranks["msp"][~diffused])


def test_skipped_images_are_known_by_the_scores_of_the_model_alone():
    """A fusion of baselines alone is never NaN."""
    fusion = Fusion(["msp", "knn"])
    combination = Combination.checked(
        fusion, Cascade("msp", 0.3, skip=True), ["maps"], ["msp", "knn"]
    )
    reference, scores = some(0), some(1)
    diffused = combination.cascade.unsure(reference["msp"], scores["msp"])
    hidden = scores | {"maps": np.where(diffused, scores["maps"], np.nan)}
    assert not np.isnan(combination(reference, hidden)["cascade"]).any()


def test_images_without_the_path_score_of_the_middle_stage_are_reconstructed():
    cascade = Cascade("msp", 1.0, "maps", middle="knn", middle_budget=0.0)
    assert cascade.undecided(some(0), np.array([np.nan, 0.0])).tolist() == [True, False]


def test_a_budget_of_0_or_1_gives_one_of_the_two_scores():
    reference, scores = some(0), some(1)
    for budget, name in ((0.0, "msp"), (1.0, "maps")):
        np.testing.assert_array_equal(
            Cascade("msp", budget, "maps")(reference, scores), scale(reference[name], scores[name])
        )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Fusion(["maps"]), "fusion.scores: .*at least two different names"),
        (lambda: Fusion(["maps", "maps"]), "at least two different names"),
        (
            lambda: Fusion(["maps", "msp"], "mean"),
            "fusion.by 'mean'.*: rank, zscore",
        ),
        (lambda: Fusion(["maps", "msp"], weights=[1]), "fusion.weights: .*must be 2 numbers"),
        (lambda: Fusion(["maps", "msp"], weights=[0, 0]), "not all 0"),
        (lambda: Fusion(["maps", "msp"], weights=[2, -1]), "none negative"),
        (lambda: Fusion(["maps", "msp"], weights=[float("nan"), 1]), "none negative"),
        (lambda: Cascade("msp", 1.2), "cascade.budget: 1.2 must be a fraction"),
        (
            lambda: checked(Fusion(["maps", "odin"])),
            "model.fusion.scores 'odin'.*: maps, kl, msp, energy",
        ),
        (
            lambda: checked(None, Cascade("maps")),
            "model.cascade.baseline 'maps'.*: msp, energy",
        ),
        (
            lambda: checked(None, Cascade("msp", then="fusion")),
            "model.cascade.then 'fusion'.*: maps, kl",
        ),
    ],
)
def test_wrong_settings_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


def checked(fusion: Fusion | None = None, cascade: Cascade | None = None) -> Combination:
    return Combination.checked(fusion, cascade, ["maps", "kl"], ["msp", "energy"])


def test_combined_scores_stand_between_discrepancies_and_baselines():
    combination = checked(Fusion(["maps", "msp"]), Cascade())
    scores = ["maps", "kl", "msp", "energy"]
    assert combination.table_scores(scores) == ["maps", "kl", "fusion", "cascade", "msp", "energy"]
    assert combination.cascade is not None
    assert combination.cascade.then == "maps"
    assert checked(None, Cascade(skip=True)).table_scores(scores) == ["cascade", "msp", "energy"]
    assert checked().table_scores(scores) == scores


def test_the_calibration_dataset_sets_the_scale_and_leaves_the_table():
    of, names = some(0, 30), ["maps", "msp", "knn"]
    values = np.stack([of[name] for name in names], axis=1)
    members = np.repeat([0, 1, 2], 10)
    table = ScoreTable(
        names,
        ["ind", "calibration", "svhn"],
        {"svhn": "far", "calibration": "calibration"},
        values,
        members,
    )
    combination = Combination.checked(Fusion(["maps", "msp"]), None, ["maps"], ["msp", "knn"])
    found = combination.apply_to_table(table)
    assert (found.scores, found.datasets, found.groups) == (
        ["maps", "fusion", "msp", "knn"],
        ["ind", "svhn"],
        {"svhn": "far"},
    )
    assert found.members.tolist() == [0] * 10 + [1] * 10
    reference = {name: of[name][10:20] for name in names}
    expected = Fusion(["maps", "msp"])(reference, of)
    np.testing.assert_array_equal(found.values[:, 1], np.delete(expected, range(10, 20)))


def test_a_combination_without_validation_images_is_refused():
    table = ScoreTable(["maps", "msp"], ["ind", "calibration"], {}, np.ones((3, 2)), np.zeros(3))
    with pytest.raises(InputError, match="fusion: none of the images of calibration"):
        Combination(Fusion(["maps", "msp"]), None, ["msp"]).apply_to_table(table)


def test_settings_survive_a_round_trip():
    combination = checked(Fusion(["maps", "msp"], weights=[1, 2]), Cascade("energy", 0.3))
    assert Combination.from_settings(combination.to_settings()) == combination
    assert checked().to_settings() is None
    assert not Combination.from_settings(None)
