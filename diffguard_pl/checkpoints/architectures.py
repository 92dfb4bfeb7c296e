"""Architectures of the checkpoint families that can be converted, in the original authors' terms.

Plain dataclasses without torch: the registry of published weights names an architecture for each
of its entries, and listing them must not cost an import of torch.
"""

from dataclasses import dataclass, field
from typing import TypeVar


@dataclass(frozen=True)
class GuidedDiffusionArchitecture:
    """guided-diffusion's flags, under its names (Dhariwal & Nichol 2021).

    The defaults are those of ``256x256_diffusion_uncond.pt``.

    Args:
        image_size: Side of the images in pixels.
        num_channels: Number of channels of the first level.
        channel_mult: Factor on ``num_channels`` at each level.
        num_res_blocks: Number of residual blocks per level.
        attention_resolutions: Sides, in pixels, of the feature maps that have attention.
        num_heads: Number of attention heads; used if ``num_head_channels`` is -1.
        num_head_channels: Number of channels per attention head; -1 fixes ``num_heads`` instead.
        use_new_attention_order: Whether q, k and v are split before the heads.
        resblock_updown: Whether residual blocks, instead of convolutions, change the resolution.
        use_scale_shift_norm: Whether the timestep scales and shifts the normalised features.
        learn_sigma: Whether the last 3 of 6 output channels are variances.
        class_cond: Whether the network takes a class label.
        num_classes: Number of classes, if ``class_cond``.
        null_class: Whether one more label, after the classes, means "no class". The originals have
            none; DiffNB's improved-diffusion model has one.
        noise_schedule: Noise schedule of the training: ``linear``, ``cosine``, or one that the
            original DiffGuard added, ``ldm_linear`` or ``cos_linear``.
        diffusion_steps: Number of timesteps of the training.
        rescale_timesteps: Whether the network expects timesteps rescaled to [0, 1000), as
            improved-diffusion's models do.
        use_ema: Whether to use the moving average of the weights, if the file has both it and the
            weights themselves.
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
    null_class: bool = False
    noise_schedule: str = "linear"
    diffusion_steps: int = 1000
    rescale_timesteps: bool = False
    use_ema: bool = True

    @property
    def attention_levels(self) -> list[bool]:
        """Whether each level has attention."""
        # the side of the feature maps halves from level to level
        sides = [self.image_size >> level for level in range(len(self.channel_mult))]
        return [side in self.attention_resolutions for side in sides]


@dataclass(frozen=True)
class DDPMArchitecture:
    """The UNet of DDPM (Ho et al. 2020), under the names of DDIM's code (Song et al. 2021).

    With a class embedding it is DiffNB's model, the paper's on CIFAR-10. The defaults are those of
    DiffNB's ``ddim_cifar10_cond``.

    Args:
        image_size: Side of the images in pixels.
        ch: Number of channels of the first level.
        ch_mult: Factor on ``ch`` at each level.
        num_res_blocks: Number of residual blocks per level.
        attn_resolutions: Sides, in pixels, of the feature maps that have attention.
        num_classes: Number of classes, without the label after them, which means "no class". 0: the
            network takes no label.
        beta_schedule: Noise schedule of the training: ``linear``, ``quad`` (betas with linear
            roots) or ``cosine``.
        beta_start: First beta of the noise schedule; not used by ``cosine``.
        beta_end: Last beta of the noise schedule; not used by ``cosine``.
        num_diffusion_timesteps: Number of timesteps of the training.
        use_ema: Whether to use the moving average of the weights, if the file has both it and the
            weights themselves.
    """

    image_size: int = 32
    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 2, 2, 2)
    num_res_blocks: int = 2
    attn_resolutions: tuple[int, ...] = (16,)
    num_classes: int = 10
    beta_schedule: str = "linear"
    beta_start: float = 1e-4
    beta_end: float = 0.02
    num_diffusion_timesteps: int = 1000
    use_ema: bool = True

    @property
    def null_class(self) -> bool:
        """Whether the last label means "no class"."""
        return self.num_classes > 0

    @property
    def attention_levels(self) -> list[bool]:
        """Whether each level has attention."""
        sides = [self.image_size >> level for level in range(len(self.ch_mult))]
        return [side in self.attn_resolutions for side in sides]


@dataclass(frozen=True)
class NoisyClassifierArchitecture:
    """guided-diffusion's flags of a classifier of noisy images, under its names.

    The defaults are those of ``256x256_classifier.pt``. Its pool is the one that its authors call
    ``attention``.

    Args:
        image_size: Side of the images in pixels.
        classifier_width: Number of channels of the first level.
        channel_mult: Factor on ``classifier_width`` at each level; guided-diffusion derives it from
            ``image_size``.
        classifier_depth: Number of residual blocks per level.
        classifier_attention_resolutions: Sides, in pixels, of the feature maps that have attention.
        num_head_channels: Number of channels per attention head.
        classifier_use_scale_shift_norm: Whether the timestep scales and shifts the normalised
            features.
        classifier_resblock_updown: Whether residual blocks, instead of convolutions, change the
            resolution.
        num_classes: Number of classes.
    """

    image_size: int = 256
    classifier_width: int = 128
    channel_mult: tuple[int, ...] = (1, 1, 2, 2, 4, 4)
    classifier_depth: int = 2
    classifier_attention_resolutions: tuple[int, ...] = (32, 16, 8)
    num_head_channels: int = 64
    classifier_use_scale_shift_norm: bool = True
    classifier_resblock_updown: bool = True
    num_classes: int = 1000

    @property
    def unet(self) -> GuidedDiffusionArchitecture:
        """Architecture of the UNet whose encoder the classifier is."""
        return GuidedDiffusionArchitecture(
            image_size=self.image_size,
            num_channels=self.classifier_width,
            channel_mult=self.channel_mult,
            num_res_blocks=self.classifier_depth,
            attention_resolutions=self.classifier_attention_resolutions,
            num_head_channels=self.num_head_channels,
            use_scale_shift_norm=self.classifier_use_scale_shift_norm,
            resblock_updown=self.classifier_resblock_updown,
        )


@dataclass(frozen=True)
class FirstStageArchitecture:
    """CompVis' ``ddconfig`` of the VQ first stage, under its names (Esser et al. 2021).

    The defaults are those of ``cin256-v2``.

    Args:
        resolution: Side of the images in pixels.
        ch: Number of channels of the first level.
        ch_mult: Factor on ``ch`` at each level.
        num_res_blocks: Number of residual blocks per level.
        attn_resolutions: Sides, in pixels, of the feature maps that have attention.
        z_channels: Number of channels of the encoder's output.
        embed_dim: Dimension of a code.
        n_embed: Number of codes.
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
    def attention_levels(self) -> list[bool]:
        """Whether each level has attention."""
        sides = [self.resolution >> level for level in range(len(self.ch_mult))]
        return [side in self.attn_resolutions for side in sides]


@dataclass(frozen=True)
class LatentDiffusionArchitecture:
    """CompVis' ``unet_config`` of a class-conditional model, under its names (Rombach et al. 2022).

    The defaults are those of ``cin256-v2``.

    Args:
        image_size: Side of the latents.
        model_channels: Number of channels of the first level.
        channel_mult: Factor on ``model_channels`` at each level.
        num_res_blocks: Number of residual blocks per level.
        attention_resolutions: Downsampling rates (not sides) of the levels that have a spatial
            transformer.
        num_heads: Number of attention heads; used if ``num_head_channels`` is -1.
        num_head_channels: Number of channels per attention head; -1 fixes ``num_heads`` instead.
        transformer_depth: Number of blocks per spatial transformer.
        context_dim: Dimension of the class embedding.
        n_classes: Number of classes, including the last one, which means "no class".
        scale_factor: Factor on the latents before they are diffused.
        beta_schedule: Noise schedule of the training: ``linear`` (betas with linear roots),
            ``cosine``, ``sqrt_linear`` (linear betas) or ``sqrt`` (roots of linear betas).
        linear_start: First beta of the noise schedule.
        linear_end: Last beta of the noise schedule.
        cosine_s: Offset of the schedule ``cosine``.
        timesteps: Number of timesteps of the training.
        use_ema: Whether to use the moving average of the UNet's weights (``model_ema``), with which
            CompVis samples, if the file has it.
        first_stage: Architecture of the autoencoder.
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
    beta_schedule: str = "linear"
    linear_start: float = 0.0015
    linear_end: float = 0.0195
    cosine_s: float = 0.008
    timesteps: int = 1000
    use_ema: bool = True
    first_stage: FirstStageArchitecture = field(default_factory=FirstStageArchitecture)

    @property
    def attention_levels(self) -> list[bool]:
        """Whether each level has a spatial transformer."""
        rates = [2**level for level in range(len(self.channel_mult))]
        return [rate in self.attention_resolutions for rate in rates]


PixelArchitecture = GuidedDiffusionArchitecture | DDPMArchitecture
UNetArchitecture = PixelArchitecture | LatentDiffusionArchitecture
Architecture = UNetArchitecture | NoisyClassifierArchitecture
ArchitectureT = TypeVar("ArchitectureT", bound=Architecture)
