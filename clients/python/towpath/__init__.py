"""Towpath's client library."""
