"""Samples by a network that learned to deceive a critic."""
