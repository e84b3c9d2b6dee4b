"""Samples by undoing noise step by step."""
