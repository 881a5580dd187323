"""Stereo and flow pairs: file formats, public data sets, mixtures, augmentation."""
