"""Deciding whether two texts mean the same: data, models, losses, metrics and an index, shared by the three scripts."""
