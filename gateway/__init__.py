"""The OpenAI face. Knows one port, `Engine`; knows nothing of speculation.

`gateway.app.create_app` puts it together; `gateway.ports` and `gateway.errors` are for engines.
"""
