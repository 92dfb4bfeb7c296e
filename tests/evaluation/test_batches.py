"""Batches of any loader become complete, checked dicts."""

import pandas as pd
import pytest
import torch

from diffguard_pl import InputError
from diffguard_pl.evaluation.batches import BatchReader, dataset_names


def reader(done=None, rank: int = 0, world_size: int = 1) -> BatchReader:
    return BatchReader(["ind", "ood"], done or {}, rank, world_size)


def unreadable(*indices: int) -> list[dict]:
    return [{"index": i, "path": f"{i}.png", "error": "not an image"} for i in indices]


def test_pairs_get_all_keys_and_indices_that_no_other_rank_has():
    images, labels = torch.rand(2, 3, 4, 4), torch.tensor([5, 6])
    indices = []
    for rank in (0, 1):
        of_rank = reader(rank=rank, world_size=2)
        for _ in range(2):
            batch = of_rank.read([images, labels], "ind")
            assert torch.equal(batch["image"], images)
            assert batch["label"].tolist() == [5, 6]
            assert (batch["path"], batch["unreadable"]) == (["", ""], [])
            indices += batch["index"].tolist()
    assert sorted(indices) == list(range(8))


def test_images_alone_are_unlabelled():
    assert reader().read(torch.rand(2, 3, 4, 4), "ood")["label"].tolist() == [-1, -1]


def test_finished_images_are_left_out_of_all_keys():
    batch = {
        "image": torch.arange(3.0).view(3, 1, 1, 1).expand(3, 3, 2, 2),
        "label": torch.tensor([7, 8, 9]),
        "index": torch.tensor([10, 11, 12]),
        "path": ["a", "b", "c"],
        "unreadable": unreadable(13, 14),
    }
    found = reader(done={"ind": {11, 13}}).read(batch, "ind")
    assert found["image"][:, 0, 0, 0].tolist() == [0, 2]
    assert (found["label"].tolist(), found["index"].tolist()) == ([7, 9], [10, 12])
    assert found["path"] == ["a", "c"]
    assert [item["index"] for item in found["unreadable"]] == [14]


def test_an_image_with_infinite_values_is_named():
    images = torch.zeros(3, 3, 2, 2)
    images[1, 0, 0, 0] = float("inf")
    batch = {"image": images, "index": torch.tensor([4, 5, 6]), "path": ["a", "b", "c"]}
    with pytest.raises(InputError, match="ood image 5 b: has NaN or infinite"):
        reader().read(batch, "ood")


def test_the_error_of_a_batch_is_raised():
    with pytest.raises(InputError, match="image 3: gone"):
        reader().read({"image": torch.zeros(0), "error": "ind image 3: gone"}, "ind")


@pytest.mark.parametrize(
    ("world_size", "count", "stops"), [(1, 1, True), (2, 31, False), (2, 32, True)]
)
def test_a_run_without_usable_in_distribution_images_stops_at_the_next_dataset(
    world_size, count, stops
):
    tested = reader(world_size=world_size)
    nothing = {"image": torch.zeros(0), "index": [], "path": [], "label": []}
    tested.read(nothing | {"unreadable": unreadable(*range(count))}, "ind")
    if stops:
        with pytest.raises(
            InputError, match=rf"ind: none of its {count} images.*0\.png.*data\.root"
        ):
            tested.read(torch.rand(1, 3, 2, 2), "ood")
    else:
        tested.read(torch.rand(1, 3, 2, 2), "ood")


def test_usable_images_of_an_interrupted_run_count():
    tested = reader()
    tested.add_earlier(pd.DataFrame({"dataset": ["ind", "ind"], "error": [None, "not an image"]}))
    tested.read(
        {"image": torch.zeros(0), "index": [], "path": [], "unreadable": unreadable(2)}, "ind"
    )
    tested.read(torch.rand(1, 3, 2, 2), "ood")
    assert tested.usable == {"ind": 1, "ood": 1}


@pytest.mark.parametrize(
    ("loaders", "groups", "said"),
    [
        (["ind", "ood"], {}, "must be a dict"),
        ({"ind": []}, {}, "at least one out-of-distribution"),
        ({"ind": [], "r": []}, {"r": "csid"}, "at least one out-of-distribution"),
        ({"ind": [], "calibration": []}, {}, "at least one out-of-distribution"),
        ({"calibration": [], "ind": [], "ood": []}, {}, "first must be the in-distribution one"),
        ({"ind": [], "mean": []}, {}, "'mean'.*rename"),
        ({"ind": [], "average": []}, {}, "'average'.*rename"),
        ({"ind": [], "near": [], "a": []}, {"a": "near"}, "'near'.*group.*rename"),
    ],
)
def test_test_loaders_that_do_not_make_a_table(loaders, groups, said):
    with pytest.raises(InputError, match=said):
        dataset_names(loaders, groups, calibrating=False)


def test_names_of_datasets_are_text():
    assert dataset_names({2012: [], "b": []}, {}, False) == ["2012", "b"]
    with pytest.raises(InputError, match=r"test loaders: .*shorten"):
        dataset_names({"a": [], "b" * 300: []}, {}, False)


def test_names_of_datasets_in_order():
    loaders = {"ind": [], "calibration": [], "a": [], "b": []}
    assert dataset_names(loaders, {"a": "near", "b": "near"}, False) == [*loaders]
    assert dataset_names({"calibration": []}, {}, calibrating=True) == ["calibration"]
