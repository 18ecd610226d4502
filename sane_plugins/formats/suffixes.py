"""Suffixes of the files that networks are kept in."""

INDEX = ".safetensors.index.json"
CHECKPOINTS = (".pt", ".pth", ".th", ".ckpt", ".bin", ".tar")
SCRIPTS = (".jit", ".torchscript")
ARRAYS = (".npz", ".npy")
