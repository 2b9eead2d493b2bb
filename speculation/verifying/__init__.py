"""The verifier's end of all its sessions, without I/O."""
