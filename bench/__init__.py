"""Benchmarks: berth, its neighbours and the limit of the machine, measured seconds apart in one run."""
