"""The link to the verifiers: HTTP/2 connections, and sessions that survive their cuts."""
