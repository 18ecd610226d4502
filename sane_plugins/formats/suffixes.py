"""Suffixes that promise a form, and by which writing.py goes; the content of a file says what it is."""

INDEX = ".safetensors.index.json"
CHECKPOINT_INDEX = ".bin.index.json"
CHECKPOINTS = (".pt", ".pth", ".th", ".ckpt", ".bin", ".tar")
SCRIPTS = (".jit", ".torchscript", ".ptl")
EXPORTED = (".pt2",)
ARRAYS = (".npz", ".npy")
HUB = "hf:"  # what begins so is a name of Hugging Face's hub
