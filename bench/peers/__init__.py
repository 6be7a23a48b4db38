"""The contenders: one file each. A server is a ``server.Server``; ``bare`` is the same work without any server."""
