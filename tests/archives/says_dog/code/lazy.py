from utils import word

__all__ = ["word"]
