"""What a network is: graphs, tokens, scale, symmetry."""
