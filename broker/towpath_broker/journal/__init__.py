"""Journals: implementations of ``ports.Journal``. ``sqlite`` is the host's, ``logged`` that of its locks;
``memory`` keeps nothing."""
