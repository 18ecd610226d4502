"""`python -m sane_plugins` is the command `sane-plugins`."""

from sane_plugins.cli import main

if __name__ == "__main__":
    main.main()
