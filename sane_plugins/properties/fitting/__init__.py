"""Fit heads to zoos: features, folds, a head for each kind, and what to measure next."""
