"""What `sane-init` makes of the names on its command line, and of its result."""
