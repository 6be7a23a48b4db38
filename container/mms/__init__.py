"""The second door: multi-model-server's Java front, whose workers are thin clients of the engine."""
