"""Suffixes that reading.py and writing.py go by; a new form is registered in these two."""

INDEX = ".safetensors.index.json"
CHECKPOINTS = (".pt", ".pth", ".th", ".ckpt", ".bin", ".tar")
SCRIPTS = (".jit", ".torchscript")
ARRAYS = (".npz", ".npy")
