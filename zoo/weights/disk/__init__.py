"""Weights files on disk: written whole or not at all, their headers, their records."""
