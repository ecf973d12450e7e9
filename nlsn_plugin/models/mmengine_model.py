"""Super-resolution on mmengine's Runner alone: a network and its loss, by the arguments of mmagic's BaseEditModel."""

from __future__ import annotations

from typing import Any

from mmengine.model import BaseModel
from mmengine.registry import MODELS
from torch import Tensor

from nlsn_plugin import checks
from nlsn_plugin.errors import ArgumentError

Config = dict[str, Any]


class SuperResolutionModel(BaseModel):
    """What mmengine's Runner trains and validates. Registered by `nlsn_plugin.registry`.

    Args:
        generator: config of the network, [N, C, h, w] -> [N, C, H, W], RGB in [0, 1]: dict(type='NLSN', ...).
        pixel_loss: config of the loss of output and ground truth; a name with dots is imported.
        data_preprocessor, init_cfg: see BaseModel; the default moves batches to the device.
    """

    def __init__(
        self,
        generator: Config,
        pixel_loss: Config | None = None,
        data_preprocessor: Config | None = None,
        init_cfg: Config | None = None,
    ) -> None:
        super().__init__(data_preprocessor, init_cfg)
        self.generator = MODELS.build(generator)
        self.pixel_loss = MODELS.build(pixel_loss or {'type': 'torch.nn.L1Loss'})

    def forward(self, inputs: Tensor, data_samples: Config | None = None, mode: str = 'tensor') -> Any:
        """Enlarge, and compare.

        Args:
            inputs: [N, C, h, w].
            data_samples: of SuperResolutionDataset, collated: gt [N, C, H, W] and names.
            mode: 'tensor'; 'loss'; or 'predict'.

        Returns:
            The output [N, C, H, W]; {'loss_pix': ...}; or for each image its data sample, and its output [C, H, W].
        """
        checks.one_of('mode', mode, ('tensor', 'loss', 'predict'))
        if not isinstance(inputs, Tensor):
            raise ArgumentError(
                "inputs are no batch: collate_fn=dict(type='default_collate') is expected in the dataloader's config"
            )
        output = self.generator(inputs)
        if mode == 'tensor':
            return output
        if data_samples is None:
            raise ArgumentError(f'mode={mode!r} needs data_samples, which the data set gives')
        if mode == 'loss':
            return {'loss_pix': self.pixel_loss(output.float(), data_samples['gt'])}
        each = [dict(zip(data_samples, values)) for values in zip(*data_samples.values())]
        return [{**sample, 'output': image.float()} for sample, image in zip(each, output)]
