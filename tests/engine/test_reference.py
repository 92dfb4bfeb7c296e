"""The plain loops take every step in order; the engine is compared to them in test_engine."""

import torch
from helpers.streams import cheap_diffguard

from diffguard_pl.engine import reference

IMAGES = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_the_callbacks_see_every_step_of_both_directions():
    diffguard = cheap_diffguard(steps=8)
    seen = {"inversion": [], "denoising": []}
    watch = {direction: steps.append for direction, steps in seen.items()}
    detection = reference.detect(diffguard, IMAGES, watch=watch)
    assert [step.index.tolist() for step in seen["inversion"]] == [[i, i] for i in range(8)]
    assert [step.index.tolist() for step in seen["denoising"]] == [
        [i, i] for i in reversed(range(8))
    ]
    last = diffguard.decode(seen["denoising"][-1].x)
    assert torch.equal(last.guided, detection.reconstructions)


def test_unguided_rows_come_behind_the_guided_ones():
    diffguard = cheap_diffguard(steps=8, compare_to="unguided")
    steps = []
    detection = reference.detect(diffguard, IMAGES, watch={"denoising": steps.append})
    assert steps[-1].batch_index.tolist() == [0, 1, 2, 3]
    last = diffguard.decode(steps[-1].x)
    assert torch.equal(last.guided, detection.reconstructions)
    assert torch.equal(last.unguided, detection.unguided)


def test_images_leave_inversion_when_they_stop():
    diffguard = cheap_diffguard(early_stop={"psnr": 55.0}, forback_skip_diff=2)
    images = torch.cat([IMAGES[:1], torch.full((1, 3, 16, 16), 0.5)])  # the second has no contrast
    steps = []
    detection = reference.detect(diffguard, images, watch={"inversion": steps.append})
    first, second = detection.stop_index.tolist()
    assert first < second
    assert [step.batch_index.tolist() for step in steps] == (
        [[0, 1]] * (first + 1) + [[1]] * (second - first)
    )


def test_the_methods_of_diffguard_are_the_plain_loops():
    diffguard = cheap_diffguard(steps=8, compare_to="unguided")
    prediction = diffguard.classify(IMAGES)
    inversion = diffguard.invert(IMAGES, prediction)
    reconstruction = diffguard.reconstruct(inversion, prediction)
    scores = diffguard.compare(IMAGES, prediction, reconstruction)
    assert torch.equal(scores["l2"], reference.detect(diffguard, IMAGES).scores["l2"])
