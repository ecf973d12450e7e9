"""Networks, one `*_arch.py` each, registered by `nlsn_plugin.registry`. They need torch alone; `bases.py` finds those
of the toolboxes."""

from nlsn_plugin.archs.nlsn_arch import NLSN
from nlsn_plugin.archs.with_nlsa_arch import WithNLSA

__all__ = ['NLSN', 'WithNLSA']
