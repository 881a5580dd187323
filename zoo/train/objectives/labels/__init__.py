"""Tasks with labels: classification, linear probes and linear heads."""
