"""A stream returns the detections of batches in their order, and keeps no more than it needs."""

import pytest
import torch
from helpers.streams import changed, cheap_diffguard
from torch import Tensor

from diffguard_pl.datamodules.digits import digits
from diffguard_pl.engine import reference


@pytest.fixture(scope="module")
def some_digits() -> Tensor:
    return digits("test").images[:9]


def test_a_batch_without_images_comes_back_in_its_turn(digits_ldm, some_digits):
    stream = digits_ldm.stream()
    found = stream.push(some_digits[:3], tag="first")
    found += stream.push_nothing("nothing")
    found += stream.push(some_digits[3:5], tag="last")
    found += stream.drain()
    assert [(tag, detection is None) for tag, detection in found] == [
        ("first", False),
        ("nothing", True),
        ("last", False),
    ]


@pytest.mark.parametrize("passing", [[], [1], [0, 2], [0, 1, 2]])
def test_images_that_the_gate_stops_have_gaps_and_no_network_evaluations(
    digits_ldm, some_digits, passing
):
    images, passed = some_digits[:3], torch.zeros(3, dtype=torch.bool)
    passed[passing] = True
    with changed(digits_ldm, compare_to="unguided"):
        before = digits_ldm.nfe
        stream = digits_ldm.stream()
        found = stream.push(images, gate=lambda prediction: passed) + stream.drain()
        nfe = digits_ldm.nfe - before
        whole = digits_ldm(images)
    ((_, detection),) = found
    assert torch.equal(detection.labels, whole.labels)

    stopped = ~passed
    assert detection.nfe[stopped].tolist() == [0] * int(stopped.sum())
    assert (detection.stop_index[stopped] == -1).all()
    for part in (detection.reconstructions, detection.unguided, detection.scores["maps"]):
        assert part[stopped].isnan().all()
        assert not part[passed].isnan().any()

    # What passes, and all that the classifier says, is as without a gate.
    assert torch.equal(detection.nfe[passed], whole.nfe[passed])
    assert nfe == detection.nfe.sum()
    assert torch.equal(detection.scores["msp"], whole.scores["msp"])
    torch.testing.assert_close(
        detection.scores["maps"][passed], whole.scores["maps"][passed], atol=1e-5, rtol=0
    )


def test_feature_maps_are_kept_only_where_they_are_compared(digits_ldm, digits_gdm, some_digits):
    assert digits_ldm(some_digits[:2]).prediction.view.maps
    # This one compares two reconstructions.
    assert not digits_gdm(some_digits[:2]).prediction.view.maps


def test_a_compiled_network_gets_batches_of_one_size():
    diffguard = cheap_diffguard(compare_to="unguided", forback_skip_diff=2)
    images = digits("test").images[:70]
    expected = diffguard(images)
    stream = diffguard.stream()
    diffguard.compiled = True  # or says that it is
    diffguard.backbone.batch_sizes.clear()
    ((_, detection),) = stream.push(images) + stream.drain()
    reference.detect(diffguard, images)
    torch.testing.assert_close(detection.scores["l2"], expected.scores["l2"], atol=1e-5, rtol=1e-5)
    assert set(diffguard.backbone.batch_sizes) == {64}
    assert stream.engine.nfe < 64 * stream.engine.passes
