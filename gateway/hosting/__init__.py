"""Runs each service as a process: settings, logs, server, cores, parent and children."""
