"""The built-in networks as pure functions of (weights, config, inputs)."""
