"""A stream returns the detections of batches in their order, and keeps no more than it needs."""

import pytest
import torch
from helpers.streams import changed, cheap_diffguard
from torch import Tensor

from diffguard_pl.datamodules.digits import digits
from diffguard_pl.diffusion.path import Path
from diffguard_pl.engine import reference
from diffguard_pl.stages import Gates, PathGate


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
        found = stream.push(images, gates=Gates(lambda prediction: passed)) + stream.drain()
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


@pytest.mark.parametrize(
    ("family", "compare_to", "defer_stop_check"),
    [
        ("gdm", "input", True),
        ("ldm", "unguided", False),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ("gdm", "input", False),
                ("gdm", "unguided", False),
                ("gdm", "unguided", True),
                ("ldm", "input", False),
                ("ldm", "input", True),
                ("ldm", "unguided", True),
            )
        ),
    ],
)
def test_images_that_the_second_gate_stops_keep_their_path_and_are_not_reconstructed(
    digits_gdm, digits_ldm, some_digits, family, compare_to, defer_stop_check
):
    diffguard, images = (digits_gdm if family == "gdm" else digits_ldm), some_digits[:5]
    above = 2 if family == "gdm" else 0
    passes = torch.tensor([True, False, True, True, False])
    asked: list[int] = []

    def decide(path: Path) -> Tensor:
        # Each image by its own path, whatever the batch that it is in.
        places = [int((known - row).abs().argmin()) for row in path.inversion("eps2")[:, steps - 1]]
        asked.extend(places)
        return passes[places]

    # The last step is a case of its own: denoising would begin at once.
    for steps in (2, 8):
        asked.clear()
        changes = {"compare_to": compare_to, "path_steps": 3, "forback_skip_diff": above}
        with changed(diffguard, slots=4, **changes):
            whole = diffguard(images)
            known = whole.path.inversion("eps2")[:, steps - 1]
            stream = diffguard.stream()
            stream.engine.defer_stop_check = defer_stop_check
            gates = Gates(None, PathGate(decide, steps))
            found = []
            for part in images.split(2):
                found += stream.push(part, gates=gates)
            detections = [detection for _, detection in [*found, *stream.drain()]]
        assert sorted(asked) == list(range(5))
        nfe = torch.cat([d.nfe for d in detections])
        stop_index = torch.cat([d.stop_index for d in detections])
        assert stop_index[~passes].tolist() == [-1, -1]
        assert nfe[~passes].tolist() == [steps, steps]
        assert torch.equal(nfe[passes], whole.nfe[passes])
        assert torch.equal(stop_index[passes], whole.stop_index[passes])
        for name in ("reconstructions", "unguided"):
            if (expected := getattr(whole, name)) is not None:
                values = torch.cat([getattr(d, name) for d in detections])
                assert values[~passes].isnan().all()
                torch.testing.assert_close(values[passes], expected[passes], atol=1e-5, rtol=0)
        for name in diffguard.discrepancies.names:
            values = torch.cat([d.scores[name] for d in detections])
            assert values[~passes].isnan().all()
            torch.testing.assert_close(
                values[passes], whole.scores[name][passes], atol=1e-3, rtol=1e-3
            )
        # Nothing is left in the engine.
        engine = stream.engine
        assert not engine.active
        assert len(engine.states.free) == engine.states.size
        assert len(engine.references.free) == engine.references.size


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
