"""Data modules from any sources: their settings, and runs with unreadable images."""

import csv
import re
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from helpers import layouts, preloaded
from helpers.results import scores_of
from torch.utils.data import DataLoader
from torchvision.datasets import FakeData

import diffguard_pl
from diffguard_pl import DiffGuardModule, InputError
from diffguard_pl.callbacks import MetricsTable, ScoreWriter
from diffguard_pl.commands.evaluate import main
from diffguard_pl.config import load_data
from diffguard_pl.datamodules import OODDataModule


@pytest.fixture
def config(tmp_path) -> Path:
    return layouts.mixed(tmp_path)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"ind": {}}, "data.ind: must be one in-distribution dataset"),
        ({"ood": {}}, "data.ood: .*at least one out-of-distribution"),
        (
            {"ood": {"near": {"a": FakeData(1)}, "far": {"a": FakeData(1)}}},
            "data.ood: .*'a' must be unique",
        ),
        ({"ind": {"": FakeData(1)}}, "data.ind: the dataset name '': .*rename"),
        ({"ind": {"é" * 101: FakeData(1)}}, "data.ind: .*202 bytes.*shorten it to at most 200"),
        ({"ood": {"near": {"a\nb": FakeData(1)}}}, "data.ood: the dataset name .*printable"),
        ({"ood": {"x" * 201: {"a": FakeData(1)}}}, "data.ood: the group name .*shorten"),
        ({"ood": {"near": {2012: FakeData(1), "2012": FakeData(1)}}}, "'2012' must be unique"),
        ({"limit": 0}, "limit=0: must be at least 1"),
        ({"only": ["c"]}, "unknown data.only 'c'; choose from: a, b"),
        ({"on_error": "cry"}, "unknown data.on_error 'cry'; choose from: record, raise"),
        ({"resize": 200}, "resize=200: must be at least image_size=224"),
        (
            {"interpolation": "cubic"},
            "unknown interpolation 'cubic'; choose from: bilinear, bicubic",
        ),
    ],
)
def test_an_invalid_setting_is_named_with_its_remedy(settings, said):
    given = {
        "ind": {"mine": FakeData(1)},
        "ood": {"near": {"a": FakeData(1)}, "far": {"b": FakeData(1)}},
    }
    with pytest.raises(InputError, match=said.replace("[", r"\[")):
        OODDataModule(**(given | settings))


def run(monkeypatch, *args: str) -> None:
    monkeypatch.setattr("sys.argv", ["diffguard-test", *args])
    main()


def test_unreadable_images_are_recorded_and_counted_and_change_the_exit_status(
    config, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit) as exit_:
        run(
            monkeypatch,
            "--config",
            str(config),
            "--trainer.default_root_dir",
            str(tmp_path / "run"),
        )
    assert exit_.value.code == 3
    said = capsys.readouterr()
    assert "13 images could not be used" in said.err
    assert "mine: 6 images, 1 left out" in " ".join(said.out.split())
    assert "6 left out" in said.out
    rows = scores_of(tmp_path / "run")
    assert len(rows) == 7 + 12 + 5 + 6
    assert [row["index"] for row in rows if row["dataset"] == "mine"] == list(range(7))
    for row in rows:
        assert (row["error"] is None) == (row["l2"] is not None)
    assert {row["group"] for row in rows} == {"ind", "near", "strange"}
    (gone,) = [row for row in rows if row["path"] == "gone.jpg"]
    assert (gone["dataset"], gone["label"], gone["error"]) == ("mine", 1, "file not found")
    metrics = {
        row["dataset"]: row["auroc"]
        for row in csv.DictReader((tmp_path / "run" / "metrics.csv").open())
    }
    assert metrics["broken"] == "nan"  # nothing of it could be read
    assert 0 <= float(metrics["folder"]) <= 1


def test_on_error_raise_ends_the_run_at_the_first_unreadable_image(config, tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match=r"error: mine image 6 gone.jpg: file not found"):
        run(
            monkeypatch,
            "--config",
            str(config),
            "--data.on_error",
            "raise",
            "--trainer.default_root_dir",
            str(tmp_path / "run"),
        )
    assert len(scores_of(tmp_path / "run")) == 4  # the batch before


def test_plain_pairs_are_numbered_and_unlabelled_images_have_no_accuracy(tmp_path):
    import pytorch_lightning as pl

    detector = diffguard_pl.load("digits_ldm", steps=2, discrepancies=["l2"])
    pairs = [(image, -1) for image in torch.rand(5, 3, 16, 16)]
    settings = {
        "classifier": detector.classifier,
        "backbone": detector.backbone,
        "guidance": detector.guidance,
        "steps": 2,
    }
    module = DiffGuardModule(discrepancies=["l2"], **settings)
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    callbacks = [ScoreWriter(), MetricsTable()]
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, callbacks=callbacks, default_root_dir=tmp_path, **quiet
    )
    trainer.test(
        module, {"mine": DataLoader(pairs, 2), "other": DataLoader(pairs, 2)}, verbose=False
    )
    rows = scores_of(tmp_path)
    assert [row["index"] for row in rows] == [*range(5), *range(5)]
    assert module.ind_accuracy != module.ind_accuracy


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (
            ["--data.only", "[nothing]"],
            r"unknown data.only 'nothing'; choose from: folder, noise, broken$",
        ),
        (["--data.limit", "0"], r"data.limit=0: must be at least 1"),
        (
            ["--data.batch_size", "0"],
            r"data.batch_size=0, num_workers=2: must be at least 1 and 0",
        ),
        (["--data.on_error", "skip"], r"unknown data.on_error 'skip'; choose from: record, raise$"),
        (["--trajectory.every", "0"], r"trajectory.count=0, every=0: must be at least"),
        (["--config"], r"--config: needs a config"),
        (["--base", "gdm"], r"--base: .*only in config files"),
    ],
)
def test_an_invalid_setting_is_one_line_of_the_command(args, said, config, tmp_path, monkeypatch):
    with pytest.raises(SystemExit) as exit_:
        run(
            monkeypatch,
            "--config",
            str(config),
            "--trainer.default_root_dir",
            str(tmp_path / "run"),
            *args,
        )
    assert isinstance(exit_.value.code, str)
    assert "\n" not in exit_.value.code
    assert re.search(said, exit_.value.code)


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        (
            "ImageDirectory",
            "ImageDirectry",
            "unknown source of images ImageDirectry; did you mean ImageDirectory?",
        ),
        (
            "root:",
            "rooot:",
            "unknown setting rooot; did you mean root? choose from: follow_links, root, upright",
        ),
        ("ood:", "oodd:", "unknown setting oodd; did you mean ood? choose from: batch_size, "),
    ],
)
def test_a_misspelt_source_or_setting_has_a_suggestion(
    right, wrong, said, tmp_path, monkeypatch, capsys
):
    text = """
base: digits_ldm
data:
  class_path: OODDataModule
  init_args:
    image_size: 16
    ind: {a: {class_path: ImageDirectory, init_args: {root: images}}}
    ood: {near: {b: {class_path: ImageDirectory, init_args: {root: images}}}}
"""
    (tmp_path / "mine.yaml").write_text(text[::-1].replace(right[::-1], wrong[::-1], 1)[::-1])
    with pytest.raises(InputError, match=re.escape(said)):
        load_data([str(tmp_path / "mine.yaml")])
    with pytest.raises(SystemExit):
        run(monkeypatch, "--config", str(tmp_path / "mine.yaml"))
    assert capsys.readouterr().err.startswith(f"error: {said}")


NAMED_BY_NUMBERS = """
base: digits_ldm
model: {steps: 2, discrepancies: [l2]}
pictures: {count: 1}
data:
  class_path: OODDataModule
  init_args:
    image_size: 16
    resize: null
    num_workers: 0
    only: [no, 1e3]
    ind:
      2012: {class_path: ClassFolders, init_args: {root: FOLDER, classes: [0, off]}}
    ood:
      2012-01-01:
        no: {class_path: ImageDirectory, init_args: {root: FOLDER/0}}
        1e3: {class_path: ImageDirectory, init_args: {root: FOLDER/off}}
"""


def test_names_that_yaml_reads_as_something_else_are_text_from_the_first_and_resume(
    tmp_path, monkeypatch
):
    layouts.save(tmp_path, ["0/a.jpg", "off/b.jpg"], side=20)
    (tmp_path / "mine.yaml").write_text(NAMED_BY_NUMBERS.replace("FOLDER", str(tmp_path)))
    run_folder = tmp_path / "run"
    # every image of an out-of-distribution dataset is in-distribution, too
    with pytest.warns(UserWarning, match=r"2012: the same images.*1 of no, such as a.jpg = 0/a"):
        run(
            monkeypatch,
            *("--config", str(tmp_path / "mine.yaml")),
            *("--trainer.default_root_dir", str(run_folder)),
        )
    rows = scores_of(run_folder)
    assert [(row["dataset"], row["group"]) for row in rows] == [
        *[("2012", "ind")] * 2,
        ("no", "2012-01-01"),
        ("1e3", "2012-01-01"),
    ]
    assert [row["label"] for row in rows] == [0, 1, -1, -1]
    with pytest.warns(UserWarning, match="same images"):
        run(monkeypatch, "--resume", str(run_folder))
    assert scores_of(run_folder) == rows


def test_a_run_never_writes_to_the_folder_of_another(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(monkeypatch, "--config", str(config), "--data.only", "noise", "--data.limit", "3")
    (first,) = (tmp_path / "runs" / "mine").iterdir()
    before = scores_of(first)
    run(monkeypatch, "--config", str(first / "config.yaml"), "--data.limit", "2")
    (again,) = (tmp_path / "runs" / "config").iterdir()
    assert len(scores_of(again)) == 4
    with pytest.raises(SystemExit, match=r"holds the results of another run"):
        run(monkeypatch, "--config", str(config), "--trainer.default_root_dir", str(first))
    assert scores_of(first) == before


def test_a_run_stops_after_an_in_distribution_set_of_which_nothing_could_be_used(
    config, tmp_path, monkeypatch
):
    (tmp_path / "images" / "list.txt").write_text("gone.jpg 1\ngone too.jpg 2\n")
    with pytest.raises(
        SystemExit,
        match=r"mine: none of its 2 images could be used; the first, gone.jpg: file not found",
    ):
        run(
            monkeypatch,
            "--config",
            str(config),
            "--trainer.default_root_dir",
            str(tmp_path / "run"),
        )


def test_a_dataset_may_have_fewer_images_than_devices(config, tmp_path):
    (tmp_path / "images" / "list.txt").write_text("0.jpg 1\n")
    command = ["-m", "diffguard_pl.test", "--config", str(config)]
    command += ["--data.only", "noise", "--data.limit", "3", "--trainer.devices", "2"]
    command += ["--trainer.accelerator", "cpu", "--trainer.default_root_dir", "run"]
    done = preloaded.run(command, cwd=tmp_path, fork_ranks=True)
    assert done.returncode == 0, done.stderr
    rows = scores_of(tmp_path / "run")
    assert [(row["dataset"], row["index"]) for row in rows] == [
        ("mine", 0),
        ("noise", 0),
        ("noise", 1),
        ("noise", 3),
    ]


def test_a_run_is_not_resumed_with_other_images(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = [
        "--data.batch_size",
        "1",
        "--scores.every",
        "0",
        "--pictures.count",
        "0",
        "--page.enabled",
        "false",
    ]
    with pytest.raises(SystemExit):  # status 3, for the broken ones
        main(["--config", str(config), *small, "--trainer.default_root_dir", "run"])
    for part in sorted((tmp_path / "run" / "scores").glob("part-*"))[-9:]:
        part.unlink()
    layouts.save(tmp_path / "images", ["00.jpg"])
    with pytest.raises(
        SystemExit, match=r"images of folder have changed.*\(\d+ then, \d+ now\).*restore"
    ):
        main(["--resume", "run", *small])


@pytest.mark.parametrize(
    ("ood", "said"),
    [
        ({"near": {"a", "b"}, "far": {"near"}}, "a group of datasets"),
        ({"near": {"mean", "a"}}, "the mean over a group"),
    ],
)
def test_a_dataset_with_the_name_of_a_group_is_an_error(ood, said, digits_ldm, tmp_path):
    settings = {
        "classifier": digits_ldm.classifier,
        "backbone": digits_ldm.backbone,
        "guidance": digits_ldm.guidance,
    }
    data = OODDataModule(
        {"mine": FakeData(1)},
        {group: {name: FakeData(1) for name in sets} for group, sets in ood.items()},
        16,
    )
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path
    )
    with pytest.raises(InputError, match=f"has the name of {said}; rename"):
        trainer.test(
            DiffGuardModule(**settings, steps=5, discrepancies=["l2"]), data, verbose=False
        )
