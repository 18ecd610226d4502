"""What torch writes: checkpoints and TorchScript archives, whose pickles are looked at and never run."""
