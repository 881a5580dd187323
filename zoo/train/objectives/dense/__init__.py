"""Tasks on every pixel of two images: stereo, flow and pointmaps, with their losses and metrics."""
