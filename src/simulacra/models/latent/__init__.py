"""Samples by decoding a latent variable."""
