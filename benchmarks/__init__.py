"""Measurements of this package against its rivals, and the studies behind its defaults."""
