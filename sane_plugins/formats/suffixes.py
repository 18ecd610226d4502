"""File suffixes by storage format."""

INDEX = ".safetensors.index.json"
CHECKPOINTS = (".pt", ".pth", ".th", ".ckpt", ".bin", ".tar")
SCRIPTS = (".jit", ".torchscript")
ARRAYS = (".npz", ".npy")
