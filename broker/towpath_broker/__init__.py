"""The Towpath daemon."""
