"""Positions of patches: sin-cos and learned tables, rotary embeddings, relative bias."""
