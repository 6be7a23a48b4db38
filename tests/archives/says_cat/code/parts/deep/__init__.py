from ..words import WORD

__all__ = ["WORD"]
