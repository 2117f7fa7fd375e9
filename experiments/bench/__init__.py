"""Bench one pair on one device: exact outputs, stages vs. floors, engines vs. transformers."""
