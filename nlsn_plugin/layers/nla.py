"""Standard non-local attention, over the whole image or around each pixel.

Paper: Mei, Fan, Zhou, "Image Super-Resolution with Non-Local Sparse Attention", CVPR 2021, Eqs. 3 and 4, Table 4,
Figures 5 and 6.
"""

from __future__ import annotations

from torch import Tensor

from nlsn_plugin import checks
from nlsn_plugin.layers.residual import ResidualAttention, channels_behind
from nlsn_plugin.ops.dense import attend_nearby


class NonLocalAttention(ResidualAttention):
    """Attention of every pixel to all pixels, or to those in a window around it: softmax(theta^T phi) g.

    x -> x + res_scale * NLA(x), on images of any height and width. Embedded Gaussian: keys keep their length and
    scores are not scaled. The projections are those of NonLocalSparseAttention, so that only the attention differs.
    Memory is linear in the number of pixels; time is quadratic, or linear with a window.

    Only first derivatives in reverse mode exist: PyTorch's fused attention has neither second ones nor forward mode.

    Args:
        channels: C, of the input and the output.
        window: w; pixel (i, j) attends to rows i - w // 2 to i - w // 2 + w - 1 and to the corresponding columns, as
            far as they lie in the image: there is no padding. None for the whole image.
        shared: whether keys and queries have one projection, theta = phi, as in NLSA. If not, keys have a projection of
            their own (Table 4).
        reduction: queries and keys have C / reduction channels; must divide C.
        res_scale: factor of the attention's output, which is added to the input.

    Raises:
        ArgumentError (a ValueError): an argument is out of range.

    State dict: `conv_match.0.{weight,bias}` (3x3, C -> C / reduction; theta), `conv_assembly.0.{weight,bias}` (1x1,
    C -> C; g), and unless shared `conv_key.0.{weight,bias}` (3x3, C -> C / reduction; phi).
    """

    def __init__(
        self,
        channels: int,
        window: int | None = None,
        shared: bool = True,
        reduction: int = 4,
        res_scale: float = 1.0,
    ) -> None:
        super().__init__(channels, reduction, res_scale)
        self.window = None if window is None else checks.whole('window', window, least=1)
        self.conv_key = None if checks.boolean('shared', shared) else self._new_conv_match()

    def _attend(self, x: Tensor) -> Tensor:
        query = channels_behind(self.conv_match(x))  # [N, H, W, C / reduction]
        key = query if self.conv_key is None else channels_behind(self.conv_key(x))
        value = channels_behind(self.conv_assembly(x))  # [N, H, W, C]
        return attend_nearby(query, key, value, self.window).permute(0, 3, 1, 2)

    def extra_repr(self) -> str:
        return (
            f'{self.channels}, window={self.window}, shared={self.conv_key is None}, reduction={self.reduction}, '
            f'res_scale={self.res_scale}'
        )
