"""Layers that more than one family uses, and that timm does not have. Nothing here imports the rest of the zoo."""
