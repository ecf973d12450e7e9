"""`python tools/upscale.py photo.jpg -o photo_x2.png`: the same as `nlsn upscale`."""

import sys

from nlsn_plugin.cli import main

if __name__ == '__main__':
    main(['upscale', *sys.argv[1:]])
