"""Procedural scenes drawn and rendered in torch, on any device; the same as numpy's up to rounding."""
