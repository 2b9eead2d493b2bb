"""The OpenAI API over one port, `Engine`; speculation is unknown here.

`gateway.app.create_app` builds the app; engines import `gateway.ports` and `gateway.errors`.
"""
