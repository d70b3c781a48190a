"""The discriminator: MONAI's PatchGAN on image ‖ mask."""

from monai.networks.nets import PatchDiscriminator

from genseg.plan import Plan


def build_discriminator(plan: Plan, layouts: int) -> PatchDiscriminator:
    """[n, C + layouts, *patch] → list of feature maps, the last one the score of each region."""
    return PatchDiscriminator(
        spatial_dims=plan.dims,
        channels=16 if plan.dims == 3 else 32,
        in_channels=plan.channels + layouts,
        out_channels=1,
        num_layers_d=2 if min(plan.patch) < 64 else 3,
        norm="INSTANCE",
    )
