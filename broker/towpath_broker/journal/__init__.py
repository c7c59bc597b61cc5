"""Journals: implementations of ``ports.Journal``. ``sqlite`` is the host's; ``memory`` keeps nothing."""
