"""The tensors of a torch module: read, copied and written, whatever computes them."""
