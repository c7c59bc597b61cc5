"""Adapters: one file per mechanism. None imports another."""
