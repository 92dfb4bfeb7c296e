"""Choice and order of the images in the page's gallery."""

import numpy as np

from diffguard_pl.metrics.detection import threshold_at_tpr
from diffguard_pl.report.page.gallery_cards import confusion


def test_confusion_is_positive_on_the_wrong_side_and_grows_with_the_distance():
    ind, ood = np.arange(100.0), np.array([-5.0, 4.0, 50.0, 98.5])
    found = confusion(np.r_[ind, ood], np.arange(104) < 100)
    assert threshold_at_tpr(ind) == 5
    assert (found[:100] > 0).tolist() == [True] * 5 + [False] * 95
    assert (found[100:] > 0).tolist() == [False, False, True, True]
    assert found[103] > found[102] > found[101] > found[100]
    assert list(found[:5]) == sorted(found[:5], reverse=True)


def test_an_image_without_a_score_has_no_confusion():
    found = confusion(np.array([np.nan, 1.0, 0.0]), np.array([True, True, False]))
    assert np.isnan(found).tolist() == [True, False, False]
