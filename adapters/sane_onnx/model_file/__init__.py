"""An ONNX file as it lies on disk: loaded within limits, laid out in line, shapes inferred."""
