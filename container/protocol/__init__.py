"""Bytes <-> values; pure."""
