"""Simulacra: every family of generative model behind one contract, on one honest ruler."""

__version__ = "0.1.0"
