"""Probability without networks: noise, distributions, dequantisation, bounds, schedules."""
