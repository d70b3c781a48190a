"""The discriminator: MONAI's PatchGAN on image ‖ mask."""

from monai.networks.nets import PatchDiscriminator

from genseg.plan import Plan


def build_discriminator(plan: Plan, layouts: int) -> PatchDiscriminator:
    """[n, C + layouts, *patch] → list of feature maps, the last one the score of each region.

    As deep as the smallest patch bears that the plan's network takes (level 3 and a lack of memory make
    patches smaller), so that it is the same network for them all.
    """
    return PatchDiscriminator(
        spatial_dims=plan.dims,
        channels=16 if plan.dims == 3 else 32,
        in_channels=plan.channels + layouts,
        out_channels=1,
        num_layers_d=max(1, min(3, len(plan.filters) - 2)),
        norm="INSTANCE",
    )
