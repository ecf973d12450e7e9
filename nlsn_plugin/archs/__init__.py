"""Networks, one `*_arch.py` each; they need torch alone and are registered by `nlsn_plugin.registry`."""

from nlsn_plugin.archs.nlsn_arch import NLSN

__all__ = ['NLSN']
