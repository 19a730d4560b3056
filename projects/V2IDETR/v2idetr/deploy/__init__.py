"""Trained student -> file that runs without torch."""
