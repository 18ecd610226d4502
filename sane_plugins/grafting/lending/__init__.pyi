from .grafted_weights import GraftedWeights, graft

__all__ = ["GraftedWeights", "graft"]
