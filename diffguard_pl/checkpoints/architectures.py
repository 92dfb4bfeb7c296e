"""TODO."""

from dataclasses import dataclass, field
from typing import TypeVar


@dataclass(frozen=True)
class GuidedDiffusionArchitecture:
    """guided-diffusion's flags, by their own names; the defaults are those of ``256x256_diffusion_uncond.pt``.

    Args:
        image_size: side of its images.
        num_channels: of the first level.
        channel_mult: of each level.
        num_res_blocks: a level.
        attention_resolutions: sides, in pixels, of the feature maps with attention.
        num_heads: of attention, unless num_head_channels is given.
        num_head_channels: channels of each attention head; -1: use num_heads.
        use_new_attention_order: queries, keys and values are split before the heads.
        resblock_updown: residual blocks, not convolutions, change the resolution.
        use_scale_shift_norm: the time step scales and shifts the normalised features.
        learn_sigma: the last 3 of 6 output channels are variances.
        class_cond: takes a class label.
        num_classes: that it knows, if it takes one.
        noise_schedule: linear or cosine.
        diffusion_steps: of training.
        rescale_timesteps: the network is told time steps as if there were 1000 of them (improved-diffusion's models).
    """

    image_size: int = 256
    num_channels: int = 256
    channel_mult: tuple[int, ...] = (1, 1, 2, 2, 4, 4)
    num_res_blocks: int = 2
    attention_resolutions: tuple[int, ...] = (32, 16, 8)
    num_heads: int = 4
    num_head_channels: int = 64
    use_new_attention_order: bool = False
    resblock_updown: bool = True
    use_scale_shift_norm: bool = True
    learn_sigma: bool = True
    class_cond: bool = False
    num_classes: int = 1000
    noise_schedule: str = "linear"
    diffusion_steps: int = 1000
    rescale_timesteps: bool = False

    @property
    def attention(self) -> list[bool]:
        """Whether each level has attention."""
        return [
            self.image_size >> level in self.attention_resolutions
            for level in range(len(self.channel_mult))
        ]


@dataclass(frozen=True)
class FirstStageArchitecture:
    """The VQ first stage, by the names of CompVis' ``ddconfig``; the defaults are those of ``cin256-v2``.

    Args:
        resolution: side of its images.
        ch: channels of the first level.
        ch_mult: of each level.
        num_res_blocks: a level.
        attn_resolutions: sides of the feature maps with attention.
        z_channels: of the encoder's output.
        embed_dim: of a code.
        n_embed: codes.
    """

    resolution: int = 256
    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 2, 4)
    num_res_blocks: int = 2
    attn_resolutions: tuple[int, ...] = ()
    z_channels: int = 3
    embed_dim: int = 3
    n_embed: int = 8192

    @property
    def attention(self) -> list[bool]:
        """Whether each level has attention."""
        return [
            self.resolution >> level in self.attn_resolutions for level in range(len(self.ch_mult))
        ]


@dataclass(frozen=True)
class LatentDiffusionArchitecture:
    """A class-conditional latent diffusion model, by the names of CompVis' ``unet_config``; the defaults are ``cin256-v2``'s.

    Args:
        image_size: side of the latents.
        model_channels: of the first level.
        channel_mult: of each level.
        num_res_blocks: a level.
        attention_resolutions: downsampling rates (not sides) of the levels with a spatial transformer.
        num_heads: of attention, unless num_head_channels is given.
        num_head_channels: channels of each attention head; -1: use num_heads.
        transformer_depth: blocks of each spatial transformer.
        context_dim: of the class embedding.
        n_classes: classes, the last one meaning "no class".
        scale_factor: of the latents.
        linear_start: first beta of the noise schedule.
        linear_end: last beta.
        timesteps: of training.
        first_stage: the autoencoder.
    """

    image_size: int = 64
    model_channels: int = 192
    channel_mult: tuple[int, ...] = (1, 2, 3, 5)
    num_res_blocks: int = 2
    attention_resolutions: tuple[int, ...] = (8, 4, 2)
    num_heads: int = 1
    num_head_channels: int = -1
    transformer_depth: int = 1
    context_dim: int = 512
    n_classes: int = 1001
    scale_factor: float = 1.0
    linear_start: float = 0.0015
    linear_end: float = 0.0195
    timesteps: int = 1000
    first_stage: FirstStageArchitecture = field(default_factory=FirstStageArchitecture)

    @property
    def attention(self) -> list[bool]:
        """Whether each level has a spatial transformer."""
        return [2**level in self.attention_resolutions for level in range(len(self.channel_mult))]


Architecture = GuidedDiffusionArchitecture | LatentDiffusionArchitecture
A = TypeVar("A", bound=Architecture)
