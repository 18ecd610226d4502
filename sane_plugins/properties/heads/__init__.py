"""Heads: what they hold, how they predict a number, a category or several kinds, and how they are stored."""
