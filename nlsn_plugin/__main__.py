"""`python -m nlsn_plugin` is the `nlsn` command."""

from nlsn_plugin.cli import main

if __name__ == '__main__':
    main()
