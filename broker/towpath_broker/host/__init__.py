"""What the daemon asks of the host: directories, processes, systemd."""
