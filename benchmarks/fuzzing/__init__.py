"""Damaged networks: real files, what is done to them, and the whole road that each one is led along."""
