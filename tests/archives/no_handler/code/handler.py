from container.handler import Handler

__all__ = ["Handler"]
