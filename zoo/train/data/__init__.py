"""What a training run learns from: one file a source, and how samples become batches."""
