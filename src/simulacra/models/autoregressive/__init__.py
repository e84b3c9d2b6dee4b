"""Samples one dimension after the other, each given those before."""
