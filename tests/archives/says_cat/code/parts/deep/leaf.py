from . import WORD

__all__ = ["WORD"]
