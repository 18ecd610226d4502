"""Networks and artefacts in safetensors files: one file or several, tensors read on demand."""
