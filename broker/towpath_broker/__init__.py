"""The Towpath daemon: one core, a supervisor, and the gateways that it starts. Not a public API; use
``towpath``."""
