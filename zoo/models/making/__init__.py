"""From a catalog entry, a file or a recipe to a model: registration, arguments, weights, compilation."""
