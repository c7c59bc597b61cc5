"""The one door: the UNIX socket, who comes through it, and what they say. See ``door``."""
