"""What every service needs as a process: settings, logs, server, cores, parent and children."""
