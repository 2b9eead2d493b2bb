"""Serves the OpenAI API over one port, `Engine`, and does not know how an engine speculates.

`gateway.app.create_app` builds the app; engines import `gateway.ports` and `gateway.errors`.
"""
