"""Foreign checkpoints read as data: pickles and zips, bounded, nothing of them is run."""
