"""PSNR and SSIM by the plugin's protocols, as a metric of mmengine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from basicsr.utils import tensor2img
from mmengine.evaluator import BaseMetric

from nlsn_plugin import checks
from nlsn_plugin.metrics.protocols import METRICS, PROTOCOLS, find_protocol, mean, planes, score

IN_COLOUR = tuple(name for name, protocol in PROTOCOLS.items() if protocol.gray == 'rgb')
"""Protocols that score gray files as RGB: in a data set of RGB images, gray files cannot be told from others."""


class SuperResolutionMetric(BaseMetric):
    """psnr_y, ssim_y, psnr_rgb and ssim_rgb of the predictions of SuperResolutionModel.

    Registered by `nlsn_plugin.registry`.

    Args:
        crop_border: number of pixels left out along each edge; the paper takes the scale.
        protocol: 'basicsr', which `nlsn train` and `nlsn test` use, or 'matlab'; see `metrics.protocols`.
        collect_device, prefix: see BaseMetric; the prefix is the data set's name.
    """

    GIVEN = METRICS
    """Names of the values that it computes, without the prefix."""

    def __init__(
        self, crop_border: int, protocol: str = 'basicsr', collect_device: str = 'cpu', prefix: str | None = None
    ) -> None:
        super().__init__(collect_device, prefix)
        self.crop_border = checks.whole('crop_border', crop_border, least=0)
        self.protocol = find_protocol(checks.one_of('protocol', protocol, IN_COLOUR))

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        for sample in data_samples:
            output, truth = (
                planes(tensor2img([sample[key]]), self.protocol, is_gray=False) for key in ('output', 'gt')
            )
            self.results.append(score(output, truth, self.crop_border))

    def compute_metrics(self, results: list[dict[str, float]]) -> dict[str, float]:
        """Means over the images; an infinite PSNR, of an output equal to its truth, is left out (see `mean`)."""
        return {name: mean([result[name] for result in results]) for name in self.GIVEN}
