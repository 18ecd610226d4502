"""How a forward pass uses the tensors of a torch module: its calls, channels and convolutions."""
