"""The OpenAI API over one port, `Engine`; how an engine speculates is unknown here.

`gateway.app.create_app` builds the app; engines import `gateway.ports` and `gateway.errors`.
"""
