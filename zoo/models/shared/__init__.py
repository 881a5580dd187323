"""What several model families share: the timm protocol, masking, and how a model knows its checkpoints."""
