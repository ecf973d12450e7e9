"""`python tools/gallery.py FOLDER`: the same as `nlsn gallery`."""

import sys

from nlsn_plugin.cli import main

if __name__ == '__main__':
    main(['gallery', *sys.argv[1:]])
