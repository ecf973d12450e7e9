"""Non-Local Sparse Network: EDSR with a non-local sparse attention after every eighth residual block.

Paper: Mei, Fan, Zhou, "Image Super-Resolution with Non-Local Sparse Attention", CVPR 2021, Section 3.4 and Figure 3.
State-dict keys are those of the authors' released code, so that their weights load with strict=True.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nlsn_plugin import checks
from nlsn_plugin.errors import ArgumentError
from nlsn_plugin.layers import ATTENTIONS, attention_arguments
from nlsn_plugin.layers.convolution import Conv3x3
from nlsn_plugin.layers.residual import channels_last
from nlsn_plugin.ops.context import is_recorded, without_autocast

BLOCKS_PER_ATTENTION = 8

TAIL_NUMBERS = {'cpu': 2**23, 'cuda': 2**26}
"""Numbers that the upsampler may make at once in inference: few enough for a CPU's cache, enough to fill a GPU."""
TAIL_CONTEXT = 2
"""Rows of context that the tail needs on each side: its convolutions reach 1 row, then 1/2, 1/4, ... or 1/3 of one."""


class NLSN(nn.Module):
    """Super-resolution network: head, residual blocks and attentions, upsampler.

    Args:
        num_in_ch, num_out_ch: channels of the image.
        num_feat: channels of the features, 256 in the paper.
        num_block: residual blocks, 32 in the paper.
        upscale: 2, 3, 4, or any power of 2; 1 keeps the size.
        n_hashes, chunk_size, reduction, eval_seed, backend: arguments of the attentions, see NonLocalSparseAttention;
            another kind of attention gets those of them that it takes. The i-th attention gets eval_seed + i. With
            backend='reference' convolutions are computed as published too, see Conv3x3.
        res_scale: factor of each residual block and each attention before its input is added, 0.1 in the paper.
        img_range: largest value inside the network; the image itself is always in [0, 1].
        rgb_mean: mean of the training images in [0, 1], subtracted from the input and added to the output.
        attention: 'nlsa'; or for comparison 'nla' (NonLocalAttention), 'local' (LocalWindowAttention), 'random'
            (NonLocalSparseAttention with partition='random') or 'none', the paper's baseline.
        attention_options: further arguments of the attentions, by name: {'window': 15, 'shared': False} for 'nla'.
        checkpointing: whether to keep only the features between the modules of the body for the backward pass and to
            recompute the rest: training on large patches takes a fraction of the memory and about a third more time.
        attention_at: for each attention, the number of residual blocks before it; None is the released placement,
            before the first block and after every eighth. [8] with num_block=16 is the paper's ablation network
            (Section 4.4).

    Raises:
        ArgumentError (a ValueError): an argument is out of range, or an attention option does not exist.

    State dict: that of the released code, where `body` numbers blocks and attentions consecutively. With
    attention='none' there are no attentions to number: the keys are those of attention_at=[], whatever attention_at is.
    """

    def __init__(
        self,
        num_in_ch: int = 3,
        num_out_ch: int = 3,
        num_feat: int = 256,
        num_block: int = 32,
        upscale: int = 2,
        n_hashes: int = 4,
        chunk_size: int = 144,
        reduction: int = 4,
        res_scale: float = 0.1,
        img_range: float = 1.0,
        rgb_mean: Sequence[float] = (0.4488, 0.4371, 0.4040),
        eval_seed: int | None = 0,
        backend: str = 'auto',
        attention: str = 'nlsa',
        attention_at: Sequence[int] | None = None,
        checkpointing: bool = False,
        attention_options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        rgb_mean = [checks.real('rgb_mean', mean) for mean in checks.sequence('rgb_mean', rgb_mean)]
        for name, channels in (('num_in_ch', num_in_ch), ('num_out_ch', num_out_ch)):
            if checks.whole(name, channels, least=1) != len(rgb_mean):
                raise ArgumentError(f'{name}={channels} does not fit rgb_mean={rgb_mean}: one mean per channel')
        img_range = checks.real('img_range', img_range)
        if img_range <= 0:
            raise ArgumentError(f'img_range={img_range:g} is not allowed: more than 0 is expected')
        num_feat = checks.whole('num_feat', num_feat, least=1)
        num_block = checks.whole('num_block', num_block, least=1)
        res_scale = checks.real('res_scale', res_scale)
        eval_seed = None if eval_seed is None else checks.seed('eval_seed', eval_seed)
        self.num_in_ch = len(rgb_mean)
        self.rgb_mean = rgb_mean
        self.img_range = img_range
        self.upscale = checks.whole('upscale', upscale, least=1)
        tail = Upsampler(self.upscale, num_feat, backend)

        shared = {
            'n_hashes': n_hashes,
            'chunk_size': chunk_size,
            'reduction': reduction,
            'res_scale': res_scale,
            'eval_seed': eval_seed,
            'backend': backend,
        }
        arguments = attention_arguments(attention, shared, {} if attention_options is None else attention_options)

        def new_attention(index: int) -> nn.Module:
            if eval_seed is not None and 'eval_seed' in arguments:
                arguments['eval_seed'] = eval_seed + index
            return ATTENTIONS[attention][0](num_feat, **arguments)

        places = attention_places(num_block, attention_at) if attention != 'none' else []
        body: list[nn.Module] = []
        for done in range(num_block + 1):
            if done:
                body.append(ResidualBlock(num_feat, res_scale, backend))
            if done in places:
                body.append(new_attention(places.index(done)))
        body.append(Conv3x3(num_feat, num_feat, backend))

        self.sub_mean = MeanShift([-img_range * mean for mean in rgb_mean])
        self.add_mean = MeanShift([img_range * mean for mean in rgb_mean])
        self.head = nn.Sequential(Conv3x3(num_in_ch, num_feat, backend))
        self.body = Body(*body)
        self.body.checkpointing = checks.boolean('checkpointing', checkpointing)
        self.tail = nn.Sequential(tail, Conv3x3(num_feat, num_out_ch, backend))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        """Report means that contradict img_range as an error, whether strict or not."""
        own = {name.removeprefix(prefix): weight for name, weight in state_dict.items() if name.startswith(prefix)}
        if said := foreign_means(own, self.img_range, self.rgb_mean):
            arguments[-1].append(said)
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def forward(self, x: Tensor) -> Tensor:
        """Enlarge: [N, num_in_ch, H, W] in [0, 1] -> [N, num_out_ch, upscale * H, upscale * W]; any H, W >= 1."""
        if x.dim() != 4 or x.shape[1] != self.num_in_ch:
            raise ArgumentError(f'x has the shape {list(x.shape)}: [N, {self.num_in_ch}, H, W] is expected')
        # All features then have channels last too, which is as fast and saves the attentions a copy.
        x = channels_last(x)
        shifted = self.sub_mean(x * self.img_range)
        features = self.head(shifted.to(self.head[0].weight.dtype))  # [N, num_feat, H, W]
        features = features + self.body(features)
        if torch.is_grad_enabled() or is_recorded() or any(map(is_watched, (*self.tail.modules(), self.add_mean))):
            return self._enlarge(features)
        return in_strips(self._enlarge, features, self.upscale)

    def _enlarge(self, features: Tensor) -> Tensor:
        """Make the image from its features, [N, num_feat, H, W] -> [N, num_out_ch, upscale * H, upscale * W]."""
        return (self.add_mean(self.tail(features)) / self.img_range).contiguous()


def foreign_means(weights: Mapping[str, Tensor], img_range: float, rgb_mean: Sequence[float] = ()) -> str | None:
    """Say how the means in the weights contradict the img_range to be used with them; None if they do not.

    Zeros are accepted, and so is `rgb_mean`, whatever its values.
    """
    means = weights.get('add_mean.bias')
    if means is None or means.is_meta or is_recorded():
        return None
    largest = float(means.abs().max())
    in_order = any(math.isclose(largest, img_range * abs(mean), rel_tol=1e-3) for mean in (0.0, *rgb_mean))
    if in_order or 0.01 * img_range <= largest <= img_range:
        return None
    return f'img_range={img_range:g} contradicts the weights, which add means of {largest:g}'


def is_watched(module: nn.Module) -> bool:
    """Whether a module's input or output may be observed or changed from outside, as WithNLSA does.

    That is so if it has hooks, if there are hooks of all modules, or if its `forward` has been replaced.
    """
    hooks_of_all = nn.modules.module._global_forward_hooks or nn.modules.module._global_forward_pre_hooks
    return bool(module._forward_hooks or module._forward_pre_hooks or hooks_of_all or 'forward' in vars(module))


def in_strips(enlarge: Callable[[Tensor], Tensor], features: Tensor, upscale: int) -> Tensor:
    """Compute `enlarge(features)` a few rows at a time, since its features grow by a factor of upscale**2.

    Each strip is computed with all the rows of context that it needs, so the result is that of the whole image.
    """
    images, channels, height, width = features.shape
    numbers = TAIL_NUMBERS['cuda' if features.is_cuda else 'cpu']
    rows = max(8 * TAIL_CONTEXT, numbers // max(1, images * channels * upscale**2 * width))
    if rows >= height:
        return enlarge(features)
    strips = []
    for begin in range(0, height, rows):
        first, end = max(0, begin - TAIL_CONTEXT), min(begin + rows, height)
        strip = enlarge(features[..., first : end + TAIL_CONTEXT, :])
        strips.append(strip[..., (begin - first) * upscale : (end - first) * upscale, :])
    return torch.cat(strips, dim=-2)


def attention_places(num_block: int, attention_at: Sequence[int] | None) -> list[int]:
    """For each attention, the number of residual blocks before it, ascending."""
    if attention_at is None:
        return list(range(0, num_block + 1, BLOCKS_PER_ATTENTION))
    places = sorted(checks.whole('attention_at', place) for place in checks.sequence('attention_at', attention_at))
    if len(set(places)) < len(places) or any(place not in range(num_block + 1) for place in places):
        raise ArgumentError(
            f'attention_at={list(attention_at)} is not allowed: different numbers from 0 to num_block={num_block}'
        )
    return places


class Body(nn.Sequential):
    """Blocks and attentions; with `checkpointing` what they compute inside is recomputed in the backward pass."""

    checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        if not (self.checkpointing and torch.is_grad_enabled()):
            return super().forward(x)  # type: ignore[no-untyped-call]
        for module in self:
            x = checkpoint(module, x, use_reentrant=False)
        return x


class MeanShift(nn.Module):
    """Add a constant to each channel.

    The released code uses a frozen 1x1 convolution; here its weight and bias are buffers, since they never train. The
    sum is computed outside autocast, so that the image is not rounded to half precision on its way in or out.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, shift: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer('weight', torch.eye(len(shift))[:, :, None, None])
        self.register_buffer('bias', torch.tensor(shift))

    def forward(self, x: Tensor) -> Tensor:
        with without_autocast(x.device):
            return F.conv2d(x.to(self.weight.dtype), self.weight, self.bias)


class ResidualBlock(nn.Module):
    """EDSR's residual block without normalisation: x + res_scale * convolution(ReLU(convolution(x)))."""

    def __init__(self, num_feat: int, res_scale: float, backend: str) -> None:
        super().__init__()
        first, second = (Conv3x3(num_feat, num_feat, backend) for _ in range(2))
        self.body = nn.Sequential(first, nn.ReLU(inplace=True), second)
        self.res_scale = res_scale

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(x, self.body(x), alpha=self.res_scale)


class Upsampler(nn.Sequential):
    """Sub-pixel upsampling: a convolution and a pixel shuffle for each factor of 2, or a single one for 3."""

    def __init__(self, upscale: int, num_feat: int, backend: str) -> None:
        if upscale == 3:
            factors = [3]
        elif upscale & (upscale - 1) == 0:
            factors = [2] * (upscale.bit_length() - 1)
        else:
            raise ArgumentError(f'upscale={upscale} is not allowed: 2, 3, 4 or another power of 2 is expected')
        super().__init__()
        for factor in factors:
            self.append(Conv3x3(num_feat, factor**2 * num_feat, backend))
            self.append(nn.PixelShuffle(factor))
