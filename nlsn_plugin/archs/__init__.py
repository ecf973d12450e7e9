"""Networks, one `*_arch.py` each; they import torch alone and are registered by `nlsn_plugin.registry`."""

from nlsn_plugin.archs.nlsn_arch import NLSN
from nlsn_plugin.archs.with_nlsa_arch import WithNLSA

__all__ = ['NLSN', 'WithNLSA']
