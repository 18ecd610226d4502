from .host import PROJECT, Host, open

__all__ = ["PROJECT", "Host", "open"]
