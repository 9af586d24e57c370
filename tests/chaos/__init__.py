"""Deterministic simulation: a whole installation and its cluster under one seed, hurt wherever it can be."""
