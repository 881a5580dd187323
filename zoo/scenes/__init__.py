"""Procedural scenes of rooms: two views of each, with depth and flow, drawn and rendered on the fly."""
