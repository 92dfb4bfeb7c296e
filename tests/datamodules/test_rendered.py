"""Images that the embedded benchmarks make: the same ones on every machine."""

import pytest

from diffguard_pl.datamodules import digits, fashion


@pytest.mark.parametrize(
    ("images", "mean"),
    [
        (digits.letters, 0.3100),
        (digits.photos, 0.4733),
        (fashion.letters, 0.1741),
        (fashion.photos, 0.4739),
    ],
    ids=["digits letters", "digits photos", "fashion letters", "fashion photos"],
)
def test_rendered_images_are_those_of_the_published_results(images, mean):
    # approximate: versions of FreeType and of the JPEG decoder differ in a few pixels
    assert images().images.mean().item() == pytest.approx(mean, abs=1e-3)
