"""Sensitivity: which part of a network makes the error of its INT8, and what to leave in float."""
