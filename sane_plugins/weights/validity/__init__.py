"""Whether a graph holds together: names, kinds, shapes, owners, connections. No stored value is read."""
