"""What a SANE learns from: stored networks, views, losses, pretraining."""
