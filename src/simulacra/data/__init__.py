"""Readers for users' files and named data sets: each gives a space and a stream."""
