"""`deeplabv3`: a ResNet with a dilated last stage, and dilated convolutions of several reaches side by side.

Chen et al., 2017 (arXiv 1706.05587), on MONAI's blocks. Eight times coarser than the image at its finest, as in the
paper; of the ResNet the basic blocks (18 layers) at the plan's widths, because a few scans do not fill 50 layers.
"""

from monai.networks.blocks import SimpleASPP
from monai.networks.nets.resnet import ResNet, ResNetBlock
from torch import Tensor, nn

from .fitting import INSTANCE, Arguments

DILATIONS = (1, 6, 12, 18)
STRIDE = 8


class DeepLabV3(nn.Module):
    """[n, channels, *s] → logits [n, outputs, *s / 8]."""

    def __init__(self, dims: int, channels: int, outputs: int, widths: list[int]):
        super().__init__()
        resnet = ResNet(
            ResNetBlock, [2, 2, 2, 2], widths, dims, channels, conv1_t_stride=2, no_max_pool=True,
            feed_forward=False, act=("relu", {"inplace": False}), norm=INSTANCE,
        )  # fmt: skip
        _dilate(resnet.layer4)
        self.encoder = nn.Sequential(
            resnet.conv1, resnet.bn1, resnet.act, resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4
        )
        self.pyramid = SimpleASPP(dims, widths[-1], widths[0], dilations=DILATIONS, norm_type=INSTANCE)
        self.out = (nn.Conv2d if dims == 2 else nn.Conv3d)(len(DILATIONS) * widths[0], outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.out(self.pyramid(self.encoder(x)))
        return logits


def _dilate(stage: nn.Module) -> None:
    """Keep the stage's resolution: its stride becomes a dilation."""
    for module in stage.modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d)):
            ones = (1,) * len(module.stride)
            if module.kernel_size != ones:
                module.dilation = module.padding = tuple(2 * one for one in ones)
            module.stride = ones


def make(a: Arguments) -> tuple[nn.Module, int]:
    """→ network, and of what its image must be a multiple."""
    widths = [a.filters[min(level, len(a.filters) - 1)] for level in range(4)]
    return DeepLabV3(a.dims, a.channels, a.outputs, widths), STRIDE
