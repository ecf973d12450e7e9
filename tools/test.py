"""BasicSR's `python tools/test.py -opt options/FILE.yml`: the same as `nlsn test`."""

import sys

from nlsn_plugin.cli import main

if __name__ == '__main__':
    main(['test', *sys.argv[1:]])
