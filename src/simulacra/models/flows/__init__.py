"""Samples by an invertible map of simple noise."""
