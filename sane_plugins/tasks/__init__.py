"""What embeddings are for: encoding, predicting, sampling, initialising."""
