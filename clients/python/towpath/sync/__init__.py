"""The synchronous client. ``towpath`` itself exports what is public: ``connect`` and what it leads to.

``api`` says what every client can do, ``registry`` how the registry is asked; ``client`` has the session with
the daemon of this host and its thread, ``messages`` publishing and subscribing, ``watching`` the rest.
"""
