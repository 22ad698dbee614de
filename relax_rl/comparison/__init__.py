"""Contestants compared over environments and seeds: `compare`."""
