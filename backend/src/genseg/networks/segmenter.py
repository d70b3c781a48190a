"""The segmenter: MONAI's DynUNet, nnU-Net's architecture."""

from monai.networks.nets import DynUNet

from genseg.plan import Plan

NORM = ("INSTANCE", {"affine": True})
ACTIVATION = ("leakyrelu", {"inplace": False, "negative_slope": 0.01})  # forward mode needs the input kept


def build_segmenter(plan: Plan, deep_supervision: bool = False) -> DynUNet:
    """[n, C, *patch] → logits [n, classes, *patch]; with deep supervision [n, heads, classes, *patch] in training."""
    return DynUNet(
        spatial_dims=plan.dims,
        in_channels=plan.channels,
        out_channels=plan.classes,
        kernel_size=plan.kernels,
        strides=plan.strides,
        upsample_kernel_size=plan.strides[1:],
        filters=plan.filters,
        norm_name=NORM,
        act_name=ACTIVATION,
        deep_supervision=deep_supervision,
        deep_supr_num=min(2, len(plan.filters) - 2),
    )
