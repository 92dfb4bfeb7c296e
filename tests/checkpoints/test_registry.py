"""Names, URLs, archives and Hugging Face repositories as checkpoints."""

import hashlib
import json

import huggingface_hub
import pytest
import torch
from helpers.files import leftovers, zipped
from helpers.golden import GDM_ARCHITECTURE, LDM_ARCHITECTURE
from helpers.originals import GDM_FILE, LDM_FILE, some_eps

from diffguard_pl import InputError
from diffguard_pl.backbones import (
    LatentDiffusion,
    PixelDiffusion,
)
from diffguard_pl.checkpoints.architectures import (
    FirstStageArchitecture,
    GuidedDiffusionArchitecture,
    LatentDiffusionArchitecture,
    NoisyClassifierArchitecture,
)
from diffguard_pl.checkpoints.registry import PUBLISHED, needed_files, resolve

# As the authors publish them, every field written out: README.md of openai/guided-diffusion
# (22e0df8) with the defaults of its script_util.py, README.md of openai/improved-diffusion
# (1bc7bbb), and configs/latent-diffusion/cin256-v2.yaml of CompVis/latent-diffusion (a506df5).
GUIDED = {
    "attention_resolutions": (32, 16, 8),
    "num_heads": 4,
    "learn_sigma": True,
    "diffusion_steps": 1000,
    "use_scale_shift_norm": True,
    "rescale_timesteps": False,
    "resblock_updown": True,
    "num_classes": 1000,
}
AS_PUBLISHED = {
    "gdm-imagenet256": GuidedDiffusionArchitecture(
        **GUIDED,
        class_cond=False,
        image_size=256,
        noise_schedule="linear",
        num_channels=256,
        num_head_channels=64,
        num_res_blocks=2,
        channel_mult=(1, 1, 2, 2, 4, 4),
        use_new_attention_order=False,
    ),
    "gdm-imagenet64-cond": GuidedDiffusionArchitecture(
        **GUIDED,
        class_cond=True,
        image_size=64,
        noise_schedule="cosine",
        num_channels=192,
        num_head_channels=64,
        num_res_blocks=3,
        channel_mult=(1, 2, 3, 4),
        use_new_attention_order=True,
    ),
    "gdm-imagenet128-cond": GuidedDiffusionArchitecture(
        **GUIDED,
        class_cond=True,
        image_size=128,
        noise_schedule="linear",
        num_channels=256,
        num_head_channels=-1,
        num_res_blocks=2,
        channel_mult=(1, 1, 2, 3, 4),
        use_new_attention_order=False,
    ),
    "gdm-imagenet256-cond": GuidedDiffusionArchitecture(
        **GUIDED,
        class_cond=True,
        image_size=256,
        noise_schedule="linear",
        num_channels=256,
        num_head_channels=64,
        num_res_blocks=2,
        channel_mult=(1, 1, 2, 2, 4, 4),
        use_new_attention_order=False,
    ),
    # classifier_defaults() of script_util.py, with the factors for 256 pixels
    "gdm-classifier256": NoisyClassifierArchitecture(
        image_size=256,
        classifier_width=128,
        channel_mult=(1, 1, 2, 2, 4, 4),
        classifier_depth=2,
        classifier_attention_resolutions=(32, 16, 8),
        num_head_channels=64,
        classifier_use_scale_shift_norm=True,
        classifier_resblock_updown=True,
        num_classes=1000,
    ),
    "gdm-cifar10": GuidedDiffusionArchitecture(
        image_size=32,
        num_channels=128,
        num_res_blocks=3,
        learn_sigma=True,
        diffusion_steps=4000,
        noise_schedule="cosine",
        # defaults of improved-diffusion's script_util.py
        channel_mult=(1, 2, 2, 2),
        attention_resolutions=(16, 8),
        num_heads=4,
        num_head_channels=-1,
        use_new_attention_order=False,
        resblock_updown=False,
        use_scale_shift_norm=True,
        class_cond=False,
        num_classes=1000,
        rescale_timesteps=True,
    ),
    "ldm-cin256": LatentDiffusionArchitecture(
        image_size=64,
        model_channels=192,
        channel_mult=(1, 2, 3, 5),
        num_res_blocks=2,
        attention_resolutions=(8, 4, 2),
        num_heads=1,
        num_head_channels=-1,
        transformer_depth=1,
        context_dim=512,
        n_classes=1001,
        scale_factor=1.0,
        beta_schedule="linear",
        linear_start=0.0015,
        linear_end=0.0195,
        cosine_s=0.008,
        timesteps=1000,
        first_stage=FirstStageArchitecture(
            resolution=256,
            ch=128,
            ch_mult=(1, 2, 4),
            num_res_blocks=2,
            attn_resolutions=(),
            z_channels=3,
            embed_dim=3,
            n_embed=8192,
        ),
    ),
    # the folder has the architecture
    "dit-xl2-256": None,
}


def test_architectures_are_those_that_the_authors_publish():
    found = {name: published.architecture for name, published in PUBLISHED.items()}
    assert found == AS_PUBLISHED


# The LICENSE files of these repositories, model-card.md of guided-diffusion, and the model card of
# facebook/DiT-XL-2-256 on Hugging Face.
LICENCES = {
    "gdm-imagenet256": "not stated; code: MIT; model card: for research only",
    "gdm-imagenet64-cond": "not stated; code: MIT; model card: for research only",
    "gdm-imagenet128-cond": "not stated; code: MIT; model card: for research only",
    "gdm-imagenet256-cond": "not stated; code: MIT; model card: for research only",
    "gdm-classifier256": "not stated; code: MIT; model card: for research only",
    "gdm-cifar10": "not stated; code: MIT",
    "ldm-cin256": "not stated; code: MIT",
    "dit-xl2-256": "CC-BY-NC-4.0",
}


def test_licences_are_those_of_the_sources():
    assert {name: published.licence for name, published in PUBLISHED.items()} == LICENCES


def test_missing_files_and_unknown_names():
    with pytest.raises(InputError, match=r"file not found.*digits_gdm, digits_ldm"):
        resolve("nowhere/model.pt")
    with pytest.raises(InputError, match="save_pretrained"):
        PixelDiffusion("digits_ldm")
    with pytest.raises(InputError, match="digits_classifier"):
        resolve("digits")


def test_a_name_is_fetched_once_and_brings_its_architecture(published, server, checkpoint_cache):
    backbone = PixelDiffusion("tiny")
    assert torch.equal(
        some_eps(backbone), some_eps(PixelDiffusion(str(GDM_FILE), GDM_ARCHITECTURE))
    )
    assert backbone.alpha_bar[500] != PixelDiffusion(str(GDM_FILE), GDM_ARCHITECTURE).alpha_bar[500]
    resolve("tiny")
    assert server.ranges == [None]
    assert leftovers(checkpoint_cache) == ["tiny_uncond.pt"]


def test_a_file_put_there_by_hand_is_found(published, server, checkpoint_cache):
    checkpoint_cache.mkdir(parents=True)
    (checkpoint_cache / "tiny_uncond.pt").write_bytes(GDM_FILE.read_bytes())
    assert resolve("tiny") == checkpoint_cache / "tiny_uncond.pt"
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
def test_a_name_of_the_other_family_is_refused_before_it_is_fetched(kind, name, checkpoint_cache):
    with pytest.raises(InputError, match=f"{name} .*does not fit this backbone"):
        kind(name)
    assert not checkpoint_cache.exists()


def test_a_url_is_a_checkpoint_and_its_hash_is_checked(server):
    url = server.put("gdm.pt", GDM_FILE)
    digest = hashlib.sha256(GDM_FILE.read_bytes()).hexdigest()
    with pytest.raises(InputError, match=f"{digest}, expected 1234"):
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
        tmp_path / "cin.zip", {"cin/readme.txt": b"", "cin/model.ckpt": LDM_FILE.read_bytes()}
    )
    url = server.put("cin.zip", archive)
    backbone = LatentDiffusion(url, LDM_ARCHITECTURE)
    assert torch.equal(
        some_eps(backbone), some_eps(LatentDiffusion(str(LDM_FILE), LDM_ARCHITECTURE))
    )
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
    original, sha = PixelDiffusion(str(GDM_FILE), GDM_ARCHITECTURE), "a" * 40
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
    assert torch.equal(
        some_eps(PixelDiffusion("hf://owner/tiny", GDM_ARCHITECTURE)), some_eps(original)
    )
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


def test_of_a_hugging_face_repository_only_what_is_needed_is_downloaded():
    pipeline = [
        "model_index.json",
        "README.md",
        "v1-5-pruned.safetensors",
        "scheduler/scheduler_config.json",
        "safety_checker/model.safetensors",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "text_encoder/model.fp16.safetensors",
        "text_encoder/pytorch_model.bin",
        "tokenizer/merges.txt",
        "tokenizer/vocab.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.non_ema.safetensors",
        "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
        "unet/diffusion_pytorch_model-00002-of-00002.safetensors",
        "vae/diffusion_pytorch_model.fp16.bin",
        "vae/diffusion_pytorch_model.fp16.safetensors",
    ]
    left_out = {"README.md", "v1-5-pruned.safetensors", "safety_checker/model.safetensors"}
    left_out |= {"text_encoder/model.fp16.safetensors", "text_encoder/pytorch_model.bin"}
    left_out |= {"unet/diffusion_pytorch_model.non_ema.safetensors"}
    left_out |= {"vae/diffusion_pytorch_model.fp16.bin"}
    assert needed_files(pipeline) == sorted(set(pipeline) - left_out)
    flat = ["config.json", "diffusion_pytorch_model.bin", "model_index.json"]
    assert needed_files(flat) == flat
