"""Jigsaw tasks on ResNets: Jigsaw, PIRL and Jigsaw Clustering, with their patches and permutations."""
