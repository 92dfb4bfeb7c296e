"""Images that several datasets of a run hold."""

import pandas as pd
from helpers import layouts

from diffguard_pl.datamodules.base import fingerprint
from diffguard_pl.report.repeats import describe_repeats


def test_repeated_images_are_counted_by_dataset_with_an_example():
    datasets = ["mine", "calibration", "far"]
    rows = [
        ("mine", 0, "a.png", "11"),
        ("mine", 1, "b.png", "22"),
        ("mine", 2, "c.png", None),
        ("calibration", 0, "v.png", "33"),
        ("far", 0, "x.png", "22"),
        ("far", 1, "y.png", "11"),
        ("far", 2, "broken.png", None),
        ("far", 3, "v.png", "33"),
    ]
    frame = pd.DataFrame(rows, columns=["dataset", "index", "path", "fingerprint"])
    line = describe_repeats(frame, datasets)
    assert line.startswith("mine: ")
    assert "2 of far, such as x.png = b.png" in line
    assert "calibration" not in line
    assert "\n" not in line
    assert describe_repeats(frame[frame["dataset"] != "far"], datasets) == ""


def test_a_fingerprint_tells_images_apart_by_their_pixels():
    one, other = (layouts.prepared([picture])[0]["image"] for picture in layouts.photographs()[:2])
    assert fingerprint(one) == fingerprint(one.clone()) != fingerprint(other)
    changed = one.clone()
    changed[2, 31, 31] += 1 / 255 if changed[2, 31, 31] < 0.5 else -1 / 255
    assert fingerprint(changed) != fingerprint(one)
