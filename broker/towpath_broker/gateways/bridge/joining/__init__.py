"""Locks that are joined to local ones: flock(2), fcntl(2) locks, POSIX semaphores."""
