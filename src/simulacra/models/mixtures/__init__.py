"""Samples by choosing a component and drawing from it."""
