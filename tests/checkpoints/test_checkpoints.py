"""Checkpoints that fetch themselves: downloads that break off, names and addresses, converted copies; on a server of our own."""

import hashlib
import json
import multiprocessing
import os
import re
import resource
import threading
import time
import zipfile
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest
import torch
import yaml
from helpers.golden import GDM_ARCHITECTURE, LDM_ARCHITECTURE, REFERENCE
from safetensors.torch import load_file, save_file

from diffguard_pl import InputError
from diffguard_pl.backbones import LatentDiffusion, PixelDiffusion
from diffguard_pl.backbones.convert_guided_diffusion import build_guided_diffusion
from diffguard_pl.backbones.save_converted import save_converted
from diffguard_pl.checkpoints import download, registry
from diffguard_pl.checkpoints.converted import (
    architecture_record,
    converted_or_original,
    known_architecture,
)
from diffguard_pl.checkpoints.download import fetch, google_drive, unzip
from diffguard_pl.checkpoints.registry import PUBLISHED, PublishedCheckpoint, resolve
from diffguard_pl.commands import checkpoints

GDM, LDM = REFERENCE / "gdm_unet.pt", REFERENCE / "ldm_model.ckpt"
BODY = bytes(
    torch.arange(300_000).to(torch.int32).numpy().tobytes()
)  # 1.2 MB, no two pieces of it alike


# ------------------------------------------------------------------------------------------------------------- a server


@dataclass
class Page:
    """What the server answers at an address.

    Attributes:
        body: the file.
        ranges: whether a part of it can be had.
        drops: how many of the next connections break off,
        after: this many bytes.
        claims: the Content-Length, if not that of the body.
        etag: mark of the version.
        kind: Content-Type.
        status: if not 200.
        seconds: before it answers.
        headers: more of them.
    """

    body: bytes = b""
    ranges: bool = True
    drops: int = 0
    after: int = 0
    claims: int | None = None
    etag: str = '"1"'
    kind: str = "application/octet-stream"
    status: int = 200
    seconds: float = 0
    headers: dict[str, str] = field(default_factory=dict)


class Server(ThreadingHTTPServer):
    """Remembers what it was asked for."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.pages: dict[str, Page] = {}
        self.asked: list[tuple[str, str | None]] = []
        self.sent = 0
        self.url = f"http://127.0.0.1:{self.server_port}"

    def put(self, name: str, body: bytes | Path = BODY, **settings) -> str:
        self.pages[f"/{name}"] = Page(
            body if isinstance(body, bytes) else body.read_bytes(), **settings
        )
        return f"{self.url}/{name}"

    def handle_error(self, *_: object) -> None:
        """A client that hangs up is part of the tests."""

    @property
    def ranges(self) -> list[str | None]:
        return [range_ for _, range_ in self.asked]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        path, range_ = self.path.partition("?")[0], self.headers.get("Range")
        self.server.asked.append((path, range_))
        page = self.server.pages.get(path, Page(status=404))
        time.sleep(page.seconds)
        start = int(re.findall(r"\d+", range_)[0]) if range_ and page.ranges else 0
        if start and start >= len(page.body):
            self.send_response(416)
            self.end_headers()
            return
        self.send_response(206 if start else page.status)
        if start:
            self.send_header(
                "Content-Range", f"bytes {start}-{len(page.body) - 1}/{len(page.body)}"
            )
        self.send_header("Content-Length", str((page.claims or len(page.body)) - start))
        self.send_header("Content-Type", page.kind)
        self.send_header("ETag", page.etag)
        for name, value in page.headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        body = page.body[start:]
        if page.drops:
            page.drops -= 1
            body = body[: page.after]
        self.wfile.write(body)
        self.server.sent += len(body)

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("DIFFGUARD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(download, "PAUSE", 0.01)
    return tmp_path / "cache" / "checkpoints"


def refusal(*args, **settings) -> str:
    with pytest.raises(InputError) as error:
        fetch(*args, **settings)
    assert "\n" not in str(error.value)
    return str(error.value)


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


# ----------------------------------------------------------------------------------------------------------- downloads


def test_a_file_is_fetched_once(server, tmp_path):
    url, digest = server.put("a.bin"), hashlib.sha256(BODY).hexdigest()
    for _ in range(2):
        path = fetch(
            url, tmp_path / "new" / "folder", "b.bin", size=len(BODY), sha256=digest.upper()
        )
    assert path.read_bytes() == BODY
    assert server.ranges == [None]
    assert leftovers(path.parent) == ["b.bin"]


def test_a_dropped_connection_is_taken_up_where_it_broke_off(server, tmp_path):
    url = server.put("a.bin", drops=3, after=300_000)
    assert fetch(url, tmp_path, "a.bin").read_bytes() == BODY
    starts = [int(re.findall(r"\d+", range_)[0]) for range_ in server.ranges[1:]]
    assert server.ranges[0] is None
    assert starts == sorted(starts)
    assert starts[0] > 0
    assert server.sent < len(BODY) + 3 * download.CHUNK_SIZE


def begun(server, folder: Path) -> int:
    """A download that broke off in the middle and was given up; how much of it there is."""
    url = server.put("a.bin", drops=1, after=600_000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(download, "MAX_FAILURES", 0)
        assert "the download is resumed" in refusal(url, folder, "a.bin")
    server.asked.clear()
    return (folder / "a.bin.part").stat().st_size


def test_a_download_that_was_given_up_is_continued_the_next_time(server, tmp_path):
    kept = begun(server, tmp_path)
    assert 500_000 < kept <= 600_000
    assert fetch(f"{server.url}/a.bin", tmp_path, "a.bin").read_bytes() == BODY
    assert server.ranges == [f"bytes={kept}-"]


def test_a_server_that_cannot_continue_sends_it_again(server, tmp_path):
    begun(server, tmp_path)
    url = server.put("a.bin", ranges=False)
    assert fetch(url, tmp_path, "a.bin").read_bytes() == BODY


@pytest.mark.parametrize("change", [{"etag": '"2"'}, {"body": BODY[::-1] + b"more"}])
def test_a_file_that_has_changed_meanwhile_is_not_mixed_with_the_old(change, server, tmp_path):
    kept = begun(server, tmp_path)
    page = Page(**({"body": BODY[::-1]} | change))
    server.pages["/a.bin"] = page
    assert fetch(f"{server.url}/a.bin", tmp_path, "a.bin").read_bytes() == page.body
    assert server.ranges == [f"bytes={kept}-", None]


def test_a_part_that_came_from_elsewhere_is_continued_and_one_that_is_too_long_is_not(
    server, tmp_path
):
    url, digest = server.put("a.bin"), hashlib.sha256(BODY).hexdigest()
    (tmp_path / "a.bin.part").write_bytes(BODY[:1000])
    (tmp_path / "b.bin.part").write_bytes(BODY + BODY)
    assert fetch(url, tmp_path, "a.bin", sha256=digest).read_bytes() == BODY
    assert fetch(url, tmp_path, "b.bin").read_bytes() == BODY
    assert server.ranges == ["bytes=1000-", f"bytes={2 * len(BODY)}-", None]


def test_a_part_that_is_whole_needs_no_network(tmp_path):
    (tmp_path / "a.bin.part").write_bytes(BODY)
    fetch(
        "http://127.0.0.1:9/a.bin", tmp_path, "a.bin", len(BODY), hashlib.sha256(BODY).hexdigest()
    )


def test_a_file_that_stays_too_short_is_not_taken_for_whole(server, tmp_path):
    url = server.put("a.bin", claims=2 * len(BODY), ranges=False)
    assert url in refusal(url, tmp_path, "a.bin")
    assert leftovers(tmp_path) == ["a.bin.part", "a.bin.part.json"]


def test_a_wrong_hash_names_both_and_removes_the_file(server, tmp_path):
    url = server.put("a.bin")
    said = refusal(url, tmp_path, "a.bin", sha256="0" * 64)
    assert url in said
    assert "0" * 64 in said
    assert hashlib.sha256(BODY).hexdigest() in said
    assert leftovers(tmp_path) == []


def test_a_wrong_size_names_both_and_removes_the_file(server, tmp_path):
    url = server.put("a.bin")
    assert re.search(
        rf"{url}: has 1,200,000 bytes, expected 7;.*again",
        refusal(url, tmp_path, "a.bin", size=7),
    )
    assert leftovers(tmp_path) == []
    (tmp_path / "a.bin").write_bytes(b"from a copy that broke off")
    assert re.search(
        r"a.bin: has 26 bytes, expected 1,200,000; remove it",
        refusal(url, tmp_path, "a.bin", size=len(BODY)),
    )


def test_a_web_page_in_place_of_a_file_is_refused(server, tmp_path, monkeypatch):
    url = server.put("a.bin", b"<html>log in</html>", kind="text/html; charset=utf-8")
    assert "web page" in refusal(url, tmp_path, "a.bin")
    server.put("download", b"<html>quota</html>", kind="text/html")
    assert (
        google_drive("XYZ")
        == "https://drive.usercontent.google.com/download?id=XYZ&export=download&confirm=t"
    )
    monkeypatch.setattr(download, "GOOGLE_DRIVE", f"{server.url}/download?id=")
    said = refusal(google_drive("XYZ"), tmp_path, "a.bin")
    assert "quota" in said
    assert (
        f"https://drive.google.com/file/d/XYZ/view in a browser and save the file as {tmp_path}/a.bin"
        in said
    )
    assert leftovers(tmp_path) == []


def test_no_such_file_is_said_at_once_and_a_busy_server_is_asked_again(server, tmp_path):
    assert "answers 404" in refusal(f"{server.url}/nothing", tmp_path, "a.bin")
    assert len(server.asked) == 1
    url = server.put("busy", status=503)
    assert "answers 503" in refusal(url, tmp_path, "a.bin")
    assert len(server.asked) == 1 + download.MAX_FAILURES


def test_without_a_network_the_url_and_the_place_for_the_file_are_named(tmp_path):
    said = refusal("http://127.0.0.1:9/a.bin", tmp_path, "a.bin")
    assert re.search(rf"http://127.0.0.1:9/a.bin: .*refused.*{tmp_path}/a.bin$", said)


def test_a_full_disk_keeps_what_has_arrived(server, tmp_path):
    url = server.put("a.bin")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (700_000, limits[1])
    )  # writing fails beyond it, as on a full disk
    try:
        said = refusal(url, tmp_path, "a.bin")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "a.bin: cannot be written (File too large)" in said
    assert (tmp_path / "a.bin.part").stat().st_size == 700_000
    assert fetch(url, tmp_path, "a.bin").read_bytes() == BODY
    assert server.ranges == [None, "bytes=700000-"]


def test_a_folder_that_cannot_be_made_is_named(server, tmp_path):
    (tmp_path / "file").touch()
    assert "cannot be written" in refusal(server.put("a.bin"), tmp_path / "file", "a.bin")


def test_of_two_processes_one_downloads_and_the_other_waits(server, tmp_path):
    url = server.put("a.bin", seconds=0.3)
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=fetch, args=(url, tmp_path, "a.bin")) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(20)
    assert [process.exitcode for process in processes] == [0, 0]
    assert server.ranges == [None]
    assert (tmp_path / "a.bin").read_bytes() == BODY


def test_progress_is_one_line_where_there_is_no_terminal(server, tmp_path, capsys):
    fetch(server.put("a.bin"), tmp_path, "a.bin", size=len(BODY))
    assert capsys.readouterr().err == "downloading a.bin (1.2 MB)\n"
    fetch(f"{server.url}/a.bin", tmp_path, "b.bin", progress=False)
    assert capsys.readouterr().err == ""


# ------------------------------------------------------------------------------------------------------------ archives


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def test_an_archive_is_unpacked_all_of_it_or_some(tmp_path):
    archive = zipped(tmp_path / "a.zip", {"x/a.bin": BODY, "x/": b"", "b.txt": b"b"})
    assert unzip(archive, tmp_path / "all") == [
        tmp_path / "all" / "x" / "a.bin",
        tmp_path / "all" / "b.txt",
    ]
    assert (tmp_path / "all" / "x" / "a.bin").read_bytes() == BODY
    assert unzip(archive, tmp_path / "some", ["b.txt"]) == [tmp_path / "some" / "b.txt"]
    assert leftovers(tmp_path / "some") == ["b.txt"]


def link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = 0o120777 << 16
    return info


@pytest.mark.parametrize(
    "evil", ["../evil", "x/../../evil", "/evil", "..\\evil", link("evil")], ids=str
)
def test_a_member_that_would_leave_the_folder_is_refused_before_anything_is_written(evil, tmp_path):
    archive = zipped(tmp_path / "a.zip", {"fine.txt": b"", evil: b"/etc"})
    with pytest.raises(InputError, match="would leave the folder"):
        unzip(archive, tmp_path / "out")
    assert leftovers(tmp_path) == ["a.zip"]


def test_a_damaged_archive_leaves_no_half_file(tmp_path):
    archive = zipped(tmp_path / "a.zip", {"a.bin": BODY})
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 255
    archive.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.zip: damaged"):
        unzip(archive, tmp_path / "out")
    assert leftovers(tmp_path / "out") == []
    archive.write_bytes(content[:-100])
    with pytest.raises(InputError, match=r"a\.zip: damaged"):
        unzip(archive, tmp_path / "out")


# -------------------------------------------------------------------------------------------------- names and addresses


@pytest.fixture
def published(server, monkeypatch) -> PublishedCheckpoint:
    """Small weights with a name, on our server."""
    digest = hashlib.sha256(GDM.read_bytes()).hexdigest()
    settings = {
        "size": GDM.stat().st_size,
        "sha256": digest,
        "architecture": replace(GDM_ARCHITECTURE, noise_schedule="cosine"),
    }
    entry = PublishedCheckpoint(
        "tiny", "a small one", "tiny_uncond.pt", server.put("gdm.pt", GDM), **settings
    )
    monkeypatch.setitem(PUBLISHED, "tiny", entry)
    return entry


def eps(backbone) -> torch.Tensor:
    x = torch.randn(
        2,
        *((3, 32, 32) if backbone.is_pixel_space else (3, 16, 16)),
        generator=torch.Generator().manual_seed(0),
    )
    return backbone.eps(x, torch.tensor([10, 900]), torch.tensor([1, 2]))


def test_a_name_is_fetched_once_and_brings_its_architecture(published, server, cache):
    backbone = PixelDiffusion("tiny")
    assert torch.equal(eps(backbone), eps(PixelDiffusion(str(GDM), GDM_ARCHITECTURE)))
    assert backbone.alpha_bar[500] != PixelDiffusion(str(GDM), GDM_ARCHITECTURE).alpha_bar[500]
    resolve("tiny")
    assert server.ranges == [None]
    assert leftovers(cache) == ["tiny_uncond.pt"]


def test_a_file_put_there_by_hand_is_found(published, server, cache):
    cache.mkdir(parents=True)
    (cache / "tiny_uncond.pt").write_bytes(GDM.read_bytes())
    assert resolve("tiny") == cache / "tiny_uncond.pt"
    assert server.asked == []


def test_an_unknown_name_lists_those_there_are():
    with pytest.raises(
        InputError,
        match=r"file not found.*digits_ldm.*gdm-imagenet256.*ldm-cin256.*dit-xl2-256",
    ) as error:
        resolve("gdm-imagenet")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("kind", "name"), [(PixelDiffusion, "ldm-cin256"), (LatentDiffusion, "gdm-imagenet256")]
)
def test_a_name_of_the_other_family_is_refused_before_it_is_fetched(kind, name, cache):
    with pytest.raises(InputError, match=f"{name} .*does not fit this backbone"):
        kind(name)
    assert not cache.exists()


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("gdm-imagenet256", 552_814_086),
        ("gdm-imagenet64-cond", 295_904_454),
        ("gdm-imagenet128-cond", 421_529_606),
        ("gdm-imagenet256-cond", 553_838_086),
        ("gdm-cifar10", 52_546_438),
    ],
)
def test_published_architectures_have_as_many_parameters_as_in_the_original_code(name, parameters):
    unet = build_guided_diffusion(PUBLISHED[name].architecture)
    assert sum(parameter.numel() for parameter in unet.parameters()) == parameters


def test_a_url_is_a_checkpoint_and_its_hash_is_checked(server):
    url = server.put("gdm.pt", GDM)
    digest = hashlib.sha256(GDM.read_bytes()).hexdigest()
    with pytest.raises(InputError, match=f"expected sha256:1234 but got {digest}"):
        resolve(f"{url}#sha256=1234")
    PixelDiffusion(f"{url}#sha256={digest}", GDM_ARCHITECTURE)
    assert resolve(url).name == "gdm.pt"
    assert len(server.asked) == 2
    with pytest.raises(InputError, match=r"#.*sha256="):
        resolve(f"{url}#md5=1")
    with pytest.raises(InputError, match="end in a file name"):
        resolve(f"{server.url}/")


def test_files_of_one_name_at_two_addresses_are_two(server):
    one, two = server.put("cin/model.ckpt", b"1"), server.put("ffhq/model.ckpt", b"2")
    assert [resolve(url).read_bytes() for url in (one, two)] == [b"1", b"2"]


def test_a_zip_with_a_checkpoint_in_it_is_a_checkpoint(server, tmp_path):
    archive = zipped(
        tmp_path / "cin.zip", {"cin/readme.txt": b"", "cin/model.ckpt": LDM.read_bytes()}
    )
    url = server.put("cin.zip", archive)
    backbone = LatentDiffusion(url, LDM_ARCHITECTURE)
    assert torch.equal(eps(backbone), eps(LatentDiffusion(str(LDM), LDM_ARCHITECTURE)))
    before = resolve(url).stat()
    assert resolve(url).stat().st_mtime_ns == before.st_mtime_ns
    assert server.ranges == [None]
    several = server.put(
        "both.zip", zipped(tmp_path / "both.zip", {"a.pt": b"", "b.pt": b"", "c.txt": b""})
    )
    with pytest.raises(InputError, match=r"exactly one .*holds: a.pt, b.pt, c.txt"):
        resolve(several)
    evil = server.put("evil.zip", zipped(tmp_path / "evil.zip", {"../cin/cin/model.ckpt": b""}))
    with pytest.raises(InputError, match="would leave the folder"):
        resolve(evil)


def test_a_hugging_face_repository_is_a_folder(server, tmp_path, monkeypatch):
    hub = huggingface_hub.constants
    monkeypatch.setattr(hub, "ENDPOINT", server.url)
    monkeypatch.setattr(
        hub, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path / "hub"))
    original, sha = PixelDiffusion(str(GDM), GDM_ARCHITECTURE), "a" * 40
    original.unet.save_pretrained(tmp_path / "unet")
    files = {path.name: path.read_bytes() for path in (tmp_path / "unet").iterdir()} | {
        "readme.md": b"not needed"
    }
    tree = [
        {"type": "file", "path": name, "size": len(body), "oid": name}
        for name, body in files.items()
    ]
    info = {"id": "owner/tiny", "sha": sha, "siblings": [{"rfilename": name} for name in files]}
    server.put("api/models/owner/tiny/revision/main", json.dumps(info).encode())
    server.put(f"api/models/owner/tiny/tree/{sha}", json.dumps(tree).encode())
    for name, body in files.items():
        server.put(
            f"owner/tiny/resolve/{sha}/{name}",
            body,
            etag=f'"{name}"',
            headers={"X-Repo-Commit": sha},
        )
    assert torch.equal(eps(PixelDiffusion("hf://owner/tiny", GDM_ARCHITECTURE)), eps(original))
    assert leftovers(resolve("hf://owner/tiny")) == [
        "config.json",
        "diffusion_pytorch_model.safetensors",
    ]
    server.put(
        "api/models/owner/none/revision/main",
        b"{}",
        status=404,
        headers={"X-Error-Code": "RepoNotFound"},
    )
    for name in ("owner/none", "one/two/three"):
        with pytest.raises(
            InputError, match=f"hf://{name}: public repository not found on Hugging Face"
        ):
            resolve(f"hf://{name}")
    monkeypatch.setattr(hub, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        InputError, match=r"hf://owner/other: cannot be downloaded .*check the network"
    ) as error:
        resolve("hf://owner/other")
    assert "\n" not in str(error.value)


# ------------------------------------------------------------------------------------------------------- random weights


@pytest.mark.parametrize(
    ("kind", "architecture"),
    [(PixelDiffusion, GDM_ARCHITECTURE), (LatentDiffusion, LDM_ARCHITECTURE)],
)
def test_random_weights_are_the_same_each_time_and_say_so(kind, architecture):
    state = torch.random.get_rng_state()
    with pytest.warns(UserWarning, match="scores mean nothing") as warned:
        one = kind("random", architecture)
    assert len(warned) == 1
    with pytest.warns(UserWarning, match="scores mean nothing"):
        two = kind("random", architecture)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(eps(one), eps(two))
    assert (eps(one).std(dim=(1, 2, 3)) > 0.1).all()
    images = torch.linspace(-1, 1, 3 * one.image_size**2).view(1, 3, one.image_size, one.image_size)
    assert one.decode(one.encode(images)).std() > 0.1
    assert not any(parameter.requires_grad for parameter in one.parameters())


def test_improved_diffusion_is_told_time_steps_out_of_1000():
    a = replace(GDM_ARCHITECTURE, diffusion_steps=4000)
    plain_one, rescaled = (
        PixelDiffusion(str(GDM), a),
        PixelDiffusion(str(GDM), replace(a, rescale_timesteps=True)),
    )
    x, t = torch.randn(2, 3, 32, 32), torch.tensor([2, 3999])
    assert torch.equal(rescaled.eps(x, t, t), plain_one.eps(x, t / 4, t))
    assert not torch.equal(rescaled.eps(x, t, t), plain_one.eps(x, t, t))


# ------------------------------------------------------------------------------------------------------ converted copies


@pytest.fixture(params=["gdm", "ldm"])
def converted(request, tmp_path):
    """A checkpoint, its backbone and architecture, and its converted copy."""
    kind, file, a = {
        "gdm": (PixelDiffusion, GDM, GDM_ARCHITECTURE),
        "ldm": (LatentDiffusion, LDM, LDM_ARCHITECTURE),
    }[request.param]
    path = tmp_path / f"model{file.suffix}"
    path.write_bytes(file.read_bytes())
    (tmp_path / "architecture.yaml").write_text(
        yaml.safe_dump(architecture_record(a)["architecture"])
    )
    checkpoints.main(["convert", str(path), "--architecture", str(tmp_path / "architecture.yaml")])
    return kind, path, a, tmp_path / "model-diffusers"


def test_the_converted_copy_gives_the_same_and_is_used_by_itself(converted):
    kind, path, a, copy = converted
    original = eps(kind(str(GDM if kind is PixelDiffusion else LDM), a))
    assert torch.equal(eps(kind(str(path), a)), original)
    assert torch.equal(eps(kind(str(copy))), original)
    (weights,) = (copy if kind is PixelDiffusion else copy / "unet").glob("*.safetensors")
    marked = {
        key: 2 * tensor if key == "conv_out.weight" else tensor
        for key, tensor in load_file(weights).items()
    }
    save_file(marked, weights)
    assert not torch.equal(eps(kind(str(path), a)), original)  # so the copy is what was loaded
    os.utime(path)
    assert torch.equal(eps(kind(str(path), a)), original)


def test_a_copy_of_another_file_or_architecture_is_not_used(converted):
    _, path, a, copy = converted
    other = replace(a, num_heads=2, num_head_channels=-1)
    assert converted_or_original(path, other) == path
    assert converted_or_original(path, a) == copy
    os.utime(path, ns=(0, 0))
    assert converted_or_original(path, a) == path
    save_converted(path, architecture=path.with_name("architecture.yaml"))
    assert converted_or_original(path, a) == copy
    (copy / "converted.json").write_text('{"size": ')
    assert converted_or_original(path, a) == path


def test_a_copy_says_what_it_was_made_of(converted):
    _, path, a, copy = converted
    note = json.loads((copy / "converted.json").read_text())
    assert note["source"] == path.name
    assert note["size"] == path.stat().st_size
    assert note["mtime_ns"] == path.stat().st_mtime_ns
    assert note["architecture"]["image_size"] == a.image_size


def test_the_copy_of_a_name_does_without_the_file(published, server, cache):
    checkpoints.main(["convert", "tiny"])
    original = eps(PixelDiffusion("tiny"))
    (cache / "tiny_uncond.pt").unlink()
    server.asked.clear()
    backbone = PixelDiffusion("tiny")
    assert torch.equal(eps(backbone), original)
    assert server.asked == []
    assert leftovers(cache) == ["tiny"]
    # the folder, given as one, brings the noise schedule of the name
    assert known_architecture(cache / "tiny", type(GDM_ARCHITECTURE)) == published.architecture
    assert torch.equal(PixelDiffusion(str(cache / "tiny")).alpha_bar, backbone.alpha_bar)


def test_a_conversion_that_fails_leaves_nothing_and_touches_no_folder_of_others(tmp_path, capsys):
    path = tmp_path / "model.pt"
    path.write_bytes(GDM.read_bytes())
    assert exit_line(["convert", str(path)], capsys).startswith(
        f"error: checkpoint {path}: does not fit"
    )
    assert leftovers(tmp_path) == ["model.pt"]
    (tmp_path / "mine").mkdir()
    assert "not a converted checkpoint" in exit_line(
        ["convert", str(path), str(tmp_path / "mine")], capsys
    )
    torch.save({"a": torch.ones(1)}, path)
    assert "its first key is a" in exit_line(["convert", str(path)], capsys)
    assert "is a folder" in exit_line(["convert", "digits_gdm"], capsys)
    path.write_bytes(GDM.read_bytes())
    (tmp_path / "a.yaml").write_text("image_sise: 32")
    assert "image_sise" in exit_line(
        ["convert", str(path), "--architecture", str(tmp_path / "a.yaml")], capsys
    )


# ---------------------------------------------------------------------------------------------------------- the command


def exit_line(args: list[str], capsys) -> str:
    with pytest.raises(SystemExit) as end:
        checkpoints.main(args)
    assert isinstance(end.value.code, str), "the interpreter prints a string and exits with 1"
    assert "\n" not in end.value.code
    return end.value.code


def test_list_says_what_there_is_and_what_is_here(published, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    checkpoints.main(["list"])
    before = capsys.readouterr().out
    assert all(name in before for name in PUBLISHED)
    assert re.search(r"gdm-imagenet256 .*2\.2 GB", before)
    checkpoints.main(["fetch", "tiny"])
    checkpoints.main(["convert", "tiny"])
    capsys.readouterr()
    checkpoints.main(["list"])
    (row,) = [line for line in capsys.readouterr().out.splitlines() if " tiny " in line]
    assert "yes" not in before
    assert row.count("yes") == 2


def test_fetch_prints_the_path_and_an_unknown_name_ends_it_in_one_line(published, cache, capsys):
    checkpoints.main(["fetch", "tiny", "digits_gdm"])
    assert capsys.readouterr().out.splitlines() == [
        str(cache / "tiny_uncond.pt"),
        str(registry.SHIPPED / "digits_gdm"),
    ]
    assert "file not found" in exit_line(["fetch", "nothing"], capsys)
