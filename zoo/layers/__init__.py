"""Layers that more than one family uses, and that timm does not have. Nothing here imports the rest of the zoo."""

import timm  # noqa: F401  (before any of these files: it brings the models, which import them)
