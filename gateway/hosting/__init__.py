"""What each service needs as a process: settings, logs, server, cores, parent and children."""
