"""`python tools/benchmark.py --net NLSN nlsn_x2.pt --sets Set5`: the same as `nlsn benchmark`."""

import sys

from nlsn_plugin.cli import main

if __name__ == '__main__':
    main(['benchmark', *sys.argv[1:]])
