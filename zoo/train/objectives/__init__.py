"""What a training run minimizes: one file an objective."""
