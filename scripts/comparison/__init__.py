"""The parts of scripts/compare.py."""
