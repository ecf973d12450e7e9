"""NLSN and WithNLSA for spandrel, through which chaiNNer and others load networks; see `nlsn_plugin.registry`.

spandrel hands over tensors alone: of metadata it sees only what a file keeps as a tensor (`nlsn convert --embed`).
"""

from __future__ import annotations

from spandrel import (
    Architecture,
    ArchRegistry,
    ArchSupport,
    ImageModelDescriptor,
    ModelTiling,
    SizeRequirements,
    StateDict,
)
from torch import nn

from nlsn_plugin.errors import CheckpointError
from nlsn_plugin.layers.residual import ResidualAttention
from nlsn_plugin.models import recognition
from nlsn_plugin.models.building import channels_of, network_of, scale_of, upscaled
from nlsn_plugin.models.checkpoint import EMBEDDED, Stored, embedded_metadata
from nlsn_plugin.models.description import Description, describe, warn_of_assumed
from nlsn_plugin.models.inference import window_of

SOURCE = 'the state dict'


class PluginArch(Architecture[nn.Module]):
    """A network of the plugin's: arguments from the weights and from embedded metadata."""

    def load(self, state_dict: StateDict) -> ImageModelDescriptor[nn.Module]:
        """The network, and how to use it.

        Raises:
            UserError: the weights are those of no network that the plugin knows.
        """
        weights = {name: tensor for name, tensor in state_dict.items() if name != EMBEDDED}
        description = describe(Stored(weights, embedded_metadata(SOURCE, state_dict), 'spandrel'), SOURCE, {})
        warn_of_assumed(description, SOURCE)
        net = network_of(description, weights, SOURCE)
        scale, channels = scale_of(net), channels_of(net)
        is_nlsn = description.type == 'NLSN'
        return ImageModelDescriptor(
            net,
            weights,
            architecture=self,
            purpose='Restoration' if scale == 1 else 'SR',
            tags=tags(description),
            supports_half=is_nlsn and description.arguments['img_range'] == 1,  # [0, 255] rounds too much
            supports_bfloat16=is_nlsn,  # of others the plugin does not know
            scale=scale,
            input_channels=channels,
            output_channels=channels if is_nlsn else upscaled(net).shape[1],
            size_requirements=SizeRequirements(
                multiple_of=window_of({'type': description.type, **description.arguments})
            ),
            tiling=ModelTiling.DISCOURAGED if sees_all(net) else ModelTiling.SUPPORTED,
        )


def sees_all(net: nn.Module) -> bool:
    """Whether an attention looks for what is alike in the whole image, in memory that is linear in its pixels."""
    attentions = [module for module in net.modules() if isinstance(module, ResidualAttention)]
    return any(getattr(attention, 'window', None) is None for attention in attentions)


def tags(description: Description) -> list[str]:
    """Of an NLSN its width, depth and attention, as '256nf', '32nb', 'nlsa'; of others the base's name."""
    own = description.arguments
    if description.type == 'NLSN':
        return [f'{own["num_feat"]}nf', f'{own["num_block"]}nb', own['attention']]
    return [str(own.get('arch', {}).get('type', description.type))]


def detects_nlsn(state_dict: StateDict) -> bool:
    """NLSN's names, by themselves; EDSR's, which it shares but for the attentions, are left to others."""
    return recognition.is_nlsn(state_dict)


def detects_other(state_dict: StateDict) -> bool:
    """A network of another class that says so in embedded metadata."""
    try:
        metadata = embedded_metadata(SOURCE, state_dict)
    except CheckpointError:  # none that this plugin wrote
        return False
    return metadata is not None and metadata['type'] != 'NLSN'


def register(registry: ArchRegistry, suffix: str) -> None:
    """Add both to a registry, before all that is in it; under a name with `suffix` where one is taken. Idempotent."""
    for name, detect in (('NLSN', detects_nlsn), ('WithNLSA', detects_other)):
        held = registry.get(name)
        if held is not None and not isinstance(held.architecture, PluginArch):
            name += suffix
        others = tuple(
            support.architecture.id for support in registry if not isinstance(support.architecture, PluginArch)
        )
        architecture = PluginArch(id=name, detect=detect)
        registry.add(ArchSupport.from_architecture(architecture, before=others), ignore_duplicates=True)
