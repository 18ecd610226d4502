"""What ONNX operators do: which inputs are weights, quantised or not, and what becomes of channels."""
