"""What a checkpoint is: recognized by its tensors, and told to people."""
