"""Time and memory of the attention in all its forms: the same as `nlsn benchmark-attention`."""

import sys

from nlsn_plugin.cli import main

if __name__ == '__main__':
    main(['benchmark-attention', *sys.argv[1:]])
