"""diffguard-pl data: images that a config needs, and where to get them."""

import http.server
import re
import threading
import zipfile
from pathlib import Path

import pytest
from helpers import layouts

from diffguard_pl.commands import data as data_command
from diffguard_pl.config import load_data
from diffguard_pl.datamodules import presence


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return layouts.cifar(layouts.imagenet(tmp_path_factory.mktemp("data")))


@pytest.fixture
def config(tmp_path) -> Path:
    return layouts.mixed(tmp_path)


def test_check_lists_complete_datasets(root, capsys):
    data_command.main(["check", "gdm", "--data.root", str(root)])
    shown = capsys.readouterr().out
    for name in ("imagenet", "species", "inaturalist", "openimage_o", "imagenet_o"):
        assert name in shown
    assert "get it" not in shown


def test_check_names_what_is_missing_and_where_to_get_it(tmp_path, capsys):
    layouts.imagenet(tmp_path)
    for name in layouts.names_of("species_sub", 4):
        (tmp_path / "images_largescale" / name).unlink()
    (tmp_path / "benchmark_imglist" / "imagenet" / "test_imagenet_o.txt").unlink()
    with pytest.raises(SystemExit) as ended:
        data_command.main(["check", "ldm", "--data.root", str(tmp_path)])
    assert ended.value.code == 1
    shown = capsys.readouterr().out
    folder = tmp_path / "images_largescale" / "species_sub" / "protists"
    assert f"species: missing {folder / '00000 (copy).jpg'}" in shown
    assert "and 1 more" in shown
    assert "diffguard-pl data prepare ldm" in shown
    assert "https://drive.google.com/file/d/1-JCxDx__iFMExkYRMylnGJYTPvyuX6aq/view" in shown
    assert "imagenet_o: image list" in shown


def test_check_counts_custom_sources(config, capsys):
    with pytest.raises(SystemExit):
        data_command.main(["check", str(config)])
    shown = capsys.readouterr().out
    assert "gone.jpg" in shown
    assert "noise" in shown
    with pytest.raises(SystemExit, match="OpenOOD"):
        data_command.main(["prepare", str(config)])


def test_check_names_images_that_are_in_two_datasets(tmp_path, capsys):
    layouts.save(tmp_path / "known", ["a.jpg", "b.jpg", "c.jpg"], side=20)
    layouts.save(tmp_path / "strange", ["d.jpg", "e.jpg"], side=20)
    (tmp_path / "strange" / "copy.jpeg").write_bytes((tmp_path / "known" / "b.jpg").read_bytes())
    same_size = bytearray((tmp_path / "known" / "c.jpg").read_bytes())
    same_size[-3] ^= 1
    (tmp_path / "strange" / "almost.jpg").write_bytes(same_size)
    config = tmp_path / "mine.yaml"
    config.write_text(
        """
base: digits_ldm
data:
  class_path: OODDataModule
  init_args:
    image_size: 16
    resize: null
    ind: {mine: {class_path: ImageDirectory, init_args: {root: ROOT/known}}}
    ood: {far: {strange: {class_path: ImageDirectory, init_args: {root: ROOT/strange}}}}
""".replace("ROOT", str(tmp_path))
    )
    data_command.main(["check", str(config)])
    shown = capsys.readouterr().out
    assert "strange: 1 images are in mine as well, such as" in shown
    assert f"{tmp_path}/strange/copy.jpeg = {tmp_path}/known/b.jpg; remove" in shown


def test_check_counts_calibration_and_training_images_on_request(root, config, tmp_path, capsys):
    data_command.main(["check", "gdm", "--calibration", "--data.root", str(root)])
    shown = capsys.readouterr().out
    assert "data.calibration" in shown
    assert "data.train" not in shown

    layouts.imagenet(tmp_path)
    training_list = tmp_path / "benchmark_imglist" / "imagenet" / "train_imagenet.txt"
    for line in training_list.read_text().splitlines():
        (tmp_path / "images_largescale" / line.split()[0]).unlink()
    with pytest.raises(SystemExit):
        data_command.main(["check", "gdm", "--train", "--data.root", str(tmp_path)])
    shown = capsys.readouterr().out
    assert "data.train: missing" in shown
    folder = tmp_path / "images_largescale" / "imagenet_1k"
    assert f"https://image-net.org -> {folder}" in shown
    with pytest.raises(SystemExit, match=r"--train: data\.train.*training images"):
        data_command.main(["check", str(config), "--train"])


def test_check_takes_overlays_and_a_single_name(root, capsys):
    data_command.main(
        ["check", "gdm", "small/gdm", "--data.root", str(root), "--data.only", "species"]
    )
    assert "inaturalist" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["gdm", "--data.only", "[specis]"], r"data.only 'specis'; choose from: species, "),
        (["gdm", "--data.rot", "/x"], r"unknown.*rot; did you mean root\?"),
        (["gdm", "--data.limit", "abc"], r"data.limit: .*int"),
        (["gmd"], r"unknown config 'gmd'"),
        (["gdm", "--data", "OODDataModul"], r"did you mean OODDataModule\?"),
        (["small/gdm"], r"config small/gdm: "),
    ],
)
def test_a_mistake_in_check_is_reported_in_one_line(args, message):
    with pytest.raises(SystemExit) as ended:
        data_command.main(["check", *args])
    assert "\n" not in ended.value.code
    assert re.search(message, ended.value.code)


@pytest.fixture
def drive(tmp_path, monkeypatch):
    """A server with OpenOOD's archives; yields the files that were requested."""
    from diffguard_pl.datamodules.openood import IMAGE_LISTS, PUBLISHED

    whole = layouts.imagenet(tmp_path / "whole")
    served, requested = tmp_path / "served", []
    served.mkdir()
    for drive_id, folder in [
        (IMAGE_LISTS.drive, "."),
        *[(p.drive, p.folder) for p in PUBLISHED.values()],
    ]:
        if (whole / folder).is_dir():
            with zipfile.ZipFile(served / drive_id, "w") as archive:
                for file in sorted(
                    (whole / folder / ("benchmark_imglist" if folder == "." else "")).rglob("*.*")
                ):
                    archive.write(file, file.relative_to(whole / folder))

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=str(served))

        def do_GET(self) -> None:
            requested.append(self.path.lstrip("/"))
            super().do_GET()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(
        presence,
        "google_drive",
        lambda drive_id: f"http://127.0.0.1:{server.server_port}/{drive_id}",
    )
    yield requested
    server.shutdown()
    server.server_close()


def test_prepare_downloads_only_what_is_missing(drive, tmp_path, capsys):
    from diffguard_pl.datamodules.openood import IMAGE_LISTS, PUBLISHED

    target = tmp_path / "data"
    data_command.main(["prepare", "gdm", "--data.root", str(target)])
    wanted = [
        PUBLISHED[name].drive
        for name in ("imagenet_1k", "species_sub", "inaturalist", "openimage_o", "imagenet_o")
    ]
    assert sorted(set(drive)) == sorted([IMAGE_LISTS.drive, *wanted])
    assert "get it" not in capsys.readouterr().out
    assert not list(target.rglob("*.zip"))
    hashes = (target / "downloads.sha256").read_text().splitlines()
    assert len(hashes) == 6
    data = load_data(["gdm"], [f"--data.root={target}", "--data.num_workers=0"])
    assert "image" in data.datasets()["species"][0]

    drive.clear()
    (target / "images_largescale" / "ninco").mkdir()
    (target / "images_largescale" / layouts.names_of("species_sub", 1)[0]).unlink()
    data_command.main(["prepare", "gdm", "--data.root", str(target)])
    assert set(drive) == {PUBLISHED["species_sub"].drive}

    drive.clear()
    (target / "images_largescale" / training_image(target)).unlink()
    with pytest.raises(SystemExit):  # OpenOOD does not publish it
        data_command.main(["prepare", "gdm", "--train", "--data.root", str(target)])
    assert not drive


def test_prepare_downloads_the_covariate_shifted_datasets_of_a_full_spectrum(
    drive, tmp_path, capsys
):
    from diffguard_pl.datamodules.openood import PUBLISHED

    target = tmp_path / "data"
    args = ["openood/imagenet200_gdm", "--data.root", str(target), "--data.only"]
    data_command.main(["prepare", *args, "[imagenet_v2, imagenet_c, imagenet_r, ninco]"])
    shifted = [PUBLISHED[name].drive for name in ("imagenet_v2", "imagenet_c", "imagenet_r")]
    assert {*shifted, PUBLISHED["imagenet_1k"].drive} < set(drive)
    assert PUBLISHED["ssb_hard"].drive not in drive
    shown = capsys.readouterr().out
    assert shown.count("csid") == 3
    assert "get it" not in shown


def training_image(root: Path) -> str:
    """The first one of OpenOOD's list."""
    return (root / "benchmark_imglist" / "imagenet" / "train_imagenet.txt").read_text().split()[0]


def test_prepare_rejects_an_archive_that_has_changed(drive, tmp_path):
    target = tmp_path / "data"
    target.mkdir()
    (target / "downloads.sha256").write_text(f"{'0' * 64}  benchmark_imglist.zip\n")
    with pytest.raises(SystemExit, match=r"error: .*0000"):
        data_command.main(["prepare", "gdm", "--data.root", str(target)])
