"""What an embedding is: windows, the autoencoder, its files."""
