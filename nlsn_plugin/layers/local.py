"""Attention within fixed windows of the image: the local window strategy that NLSA is compared with.

Paper: Mei, Fan, Zhou, "Image Super-Resolution with Non-Local Sparse Attention", CVPR 2021, Section 4.4, Table 2.
"""

from __future__ import annotations

from torch import Tensor

from nlsn_plugin import checks
from nlsn_plugin.layers.residual import ResidualAttention, channels_behind
from nlsn_plugin.ops.dense import attend_in_windows


class LocalWindowAttention(ResidualAttention):
    """Attention among the pixels of each window; the windows do not overlap.

    x -> x + res_scale * attention(x), on images of any height and width.

    The paper says of this strategy that 'elements are gathered purely depending on locations' and that the windows
    have q x q = 12 x 12 pixels, 'which equals to the attention range (k = 144)'. The rest is chosen so that in Table 2,
    which compares partitions, only the partition differs from NLSA:

    * windows divide the image as buckets do, starting at its upper left corner; at the right and lower borders they are
      smaller, and every key still counts once;
    * queries keep their length and keys have unit length;
    * a window attends to itself alone, since its neighbours would be beyond the range;
    * there is one round, since all rounds would be alike.

    Only first derivatives in reverse mode exist: PyTorch's fused attention has neither second ones nor forward mode.
    torch.compile compiles a graph for each image size.

    Args:
        channels: C, of the input and the output.
        window: q, the edge of a window in pixels.
        reduction: queries and keys have C / reduction channels; must divide C.
        res_scale: factor of the attention's output, which is added to the input.

    Raises:
        ArgumentError (a ValueError): an argument is out of range.

    State dict: that of NonLocalSparseAttention.
    """

    def __init__(self, channels: int, window: int = 12, reduction: int = 4, res_scale: float = 1.0) -> None:
        super().__init__(channels, reduction, res_scale)
        self.window = checks.whole('window', window, least=1)

    def _attend(self, x: Tensor) -> Tensor:
        match, value = channels_behind(self.conv_match(x)), channels_behind(self.conv_assembly(x))  # [N, H, W, *]
        return attend_in_windows(match, value, self.window).permute(0, 3, 1, 2)

    def extra_repr(self) -> str:
        return f'{self.channels}, window={self.window}, reduction={self.reduction}, res_scale={self.res_scale}'
