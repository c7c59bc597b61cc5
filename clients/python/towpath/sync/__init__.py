"""The synchronous client. ``towpath`` itself exports what is public: ``connect`` and what it leads to.

``client`` has the session and its thread, ``messages`` publishing and subscribing, ``registry`` and
``watching`` the rest.
"""
