"""Whole runs, each readable from top to bottom: plain functions with keyword arguments, results as dataclasses."""
