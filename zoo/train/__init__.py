"""Training by pretext tasks: objectives (one file each), data, recipes, and one engine that runs any of them."""
