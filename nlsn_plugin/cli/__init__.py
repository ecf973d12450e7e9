"""The `nlsn` command."""

from nlsn_plugin.cli.main import main

__all__ = ['main']
