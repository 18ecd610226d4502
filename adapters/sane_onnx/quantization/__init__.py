"""Quantised weights in ONNX files: which integers are weights, what they stand for, and writing them back."""
