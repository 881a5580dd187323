"""What a training run learns from: one file a source (`sources` has their names), and how samples become batches.

Sources are map-style, so that a run can be resumed anywhere. `num_classes` is 0 for images without labels; `classes`
are the labels' names, where they have some.
"""
