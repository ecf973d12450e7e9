"""Non-Local Sparse Attention and the Non-Local Sparse Network (Mei, Fan, Zhou, CVPR 2021) for BasicSR and mmengine.

Importing this package makes basicsr 1.4.2 importable on today's PyTorch and registers `NLSN`, `WithNLSA`, `NLSA`, the
attentions that the paper compares it with and `NLSNModel` in every toolbox that is installed. This has to happen in
this module, since data-loading workers import it anew.
"""

from typing import Any

from nlsn_plugin.archs import NLSN, WithNLSA
from nlsn_plugin.compat import load_toolbox
from nlsn_plugin.layers import LocalWindowAttention, NonLocalAttention, NonLocalSparseAttention
from nlsn_plugin.registry import register_all

__version__ = '0.1.0'

toolbox_problems = register_all()
"""Why registering in a toolbox failed, by the name of the toolbox; empty if nothing failed."""

__all__ = [
    'NLSN',
    'LocalWindowAttention',
    'NonLocalAttention',
    'NonLocalSparseAttention',
    'WithNLSA',
    '__version__',
    'toolbox_problems',
    'upscale',
]
if 'basicsr' not in toolbox_problems:
    __all__ += ['NLSNModel']  # a subclass of BasicSR's SRModel


def __getattr__(name: str) -> Any:
    if name == 'NLSNModel':
        load_toolbox('basicsr')  # says why, if it is absent or broken
        from nlsn_plugin.models.nlsn_model import NLSNModel

        return NLSNModel
    if name == 'upscale':
        from nlsn_plugin.engine.upscaling.in_memory import upscale

        return upscale
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
