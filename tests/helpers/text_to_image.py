"""Stable Diffusion in miniature, as diffusers saves it."""

import json
import string
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from helpers.small_models import autoencoder

LENGTH = 40
WIDTH = 32


def tokenizer(folder: Path) -> CLIPTokenizer:
    """Return a tokenizer whose tokens are letters."""
    letters = list(string.ascii_lowercase + string.punctuation)
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=LENGTH
    )


def text_encoder(tokens: CLIPTokenizer, kind: Any = CLIPTextModel) -> Any:
    torch.manual_seed(2)
    config = CLIPTextConfig(
        vocab_size=len(tokens),
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        projection_dim=WIDTH,
        bos_token_id=len(tokens) - 2,
        eos_token_id=len(tokens) - 1,
        pad_token_id=len(tokens) - 1,
    )
    return kind(config).eval()


def unet(**settings: Any) -> UNet2DConditionModel:
    torch.manual_seed(0)
    small = {
        "sample_size": 8,
        "block_out_channels": (32, 32),
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "attention_head_dim": 8,
        "cross_attention_dim": WIDTH,
    }
    return UNet2DConditionModel(**small | settings).eval()


def stable_diffusion(folder: Path, **scheduler: Any) -> StableDiffusionPipeline:
    tokens = tokenizer(folder)
    return StableDiffusionPipeline(
        autoencoder(scaling_factor=0.18215),
        text_encoder(tokens),
        tokens,
        unet(),
        PNDMScheduler(
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            skip_prk_steps=True,
            steps_offset=1,
            **scheduler,
        ),
        None,
        None,
        requires_safety_checker=False,
    )


def stable_diffusion_xl(folder: Path) -> StableDiffusionXLPipeline:
    tokens = tokenizer(folder)
    network = unet(
        cross_attention_dim=2 * WIDTH,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=WIDTH + 6 * 8,
    )
    return StableDiffusionXLPipeline(
        autoencoder(),
        text_encoder(tokens),
        text_encoder(tokens, CLIPTextModelWithProjection),
        tokens,
        tokens,
        network,
        EulerDiscreteScheduler(beta_schedule="scaled_linear"),
        add_watermarker=False,
    )


def stable_diffusion_3(folder: Path) -> StableDiffusion3Pipeline:
    tokens = tokenizer(folder)
    torch.manual_seed(0)
    network = SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=2 * WIDTH,
        caption_projection_dim=32,
        pooled_projection_dim=2 * WIDTH,
        out_channels=4,
    ).eval()
    encoders = [text_encoder(tokens, CLIPTextModelWithProjection) for _ in range(2)]
    return StableDiffusion3Pipeline(
        network,
        FlowMatchEulerDiscreteScheduler(shift=3.0),
        autoencoder(shift_factor=0.06, scaling_factor=1.5),
        encoders[0],
        tokens,
        encoders[1],
        tokens,
        None,
        None,
    )
