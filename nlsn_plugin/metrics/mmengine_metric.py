"""PSNR and SSIM by the plugin's protocols, as a metric of mmengine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from basicsr.utils import tensor2img
from mmengine.evaluator import BaseMetric

from nlsn_plugin import checks
from nlsn_plugin.metrics.protocols import METRICS, PROTOCOLS, find_protocol, mean, planes, score

IN_COLOUR = tuple(name for name, protocol in PROTOCOLS.items() if protocol.gray == 'rgb')
"""The others score gray files as they are, which a data set of RGB images does not tell."""


class SuperResolutionMetric(BaseMetric):
    """psnr_y, ssim_y, psnr_rgb and ssim_rgb of what SuperResolutionModel predicts.

    Registered by `nlsn_plugin.registry`.

    Args:
        crop_border: pixels that are left out along each edge; as many as the scale in the paper.
        protocol: 'basicsr', as `nlsn train` and `nlsn test` measure, or 'matlab'; see `metrics.protocols`.
        collect_device, prefix: see BaseMetric; the prefix is the data set's name.
    """

    GIVEN = METRICS
    """Names of its figures, without the prefix."""

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
        """The means over images; a PSNR that is infinite, of an image that equals its own, is left out."""
        return {name: mean([result[name] for result in results]) for name in self.GIVEN}
