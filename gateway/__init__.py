"""The OpenAI face. Knows one port, `Engine`; knows nothing of speculation."""

from gateway.app import create_app
from gateway.settings import GatewaySettings

__all__ = ["GatewaySettings", "create_app"]
