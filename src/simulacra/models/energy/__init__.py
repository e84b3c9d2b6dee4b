"""Samples by a Markov chain that an energy drives."""
