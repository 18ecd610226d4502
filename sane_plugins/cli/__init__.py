"""The commands `sane-init` and `sane-plugins`."""
