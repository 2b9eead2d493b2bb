"""`python -m edge_agent`: read the settings, serve, and load the draft model."""

from __future__ import annotations

import os
import ssl
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final

import structlog
import typer
import uvicorn
from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from typer import Option

from edge_agent.app import build, open_verifiers
from edge_agent.draft.loading import first_draft
from edge_agent.metrics import EdgeMetrics
from edge_agent.settings import EdgeSettings, Fallback, load
from edge_agent.starting import Starting
from gateway.drain import Drain
from gateway.hosting import logs
from gateway.hosting.http1 import DrainingServer, protocol
from gateway.hosting.idle_connections import cut_silent
from gateway.hosting.limits import max_accepted, max_connections, raise_limit
from gateway.hosting.server import check_free, settle
from gateway.hosting.settings import TlsSettings, drop_links, wrong
from gateway.hosting.strangers import check_listening
from gateway.system import pin
from local_models.errors import ModelError
from local_models.store import open_store
from speculation.messages import Fill
from speculation.model_facts import Judge

GRACE_S: Final = 5
"""Requests still open after draining get this many seconds, such as an answer that its client
does not read; then they are cancelled at both ends."""

IDLE_S: Final = 75
"""An idle connection to an edge is kept for this many seconds: longer than clients keep theirs
(httpx and the openai SDK 5 s, nginx 60 s), or a request could arrive on one that is being
closed."""

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command()
def main(
    config: Annotated[Path | None, Option(help="Settings file (TOML).")] = None,
    host: Annotated[str | None, Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, Option(envvar="EDGE_PORT", help="Port to listen on.")] = None,
    verifier_url: Annotated[
        list[str] | None, Option(help="Where a verifier is; may be repeated.")
    ] = None,
    allow_plain_http: Annotated[
        bool | None,
        Option("--allow-plain-http", help="A key may go to another machine without TLS."),
    ] = None,
    draft_model: Annotated[
        str | None,
        Option(
            "--draft",
            "--draft-model",
            help="Draft model: a name, owner/repo, path, auto, or none: repeated text alone.",
        ),
    ] = None,
    fallback: Annotated[
        Fallback | None, Option(help="Who answers while no verifier does.")
    ] = None,
    judge: Annotated[Judge | None, Option(help="How draft tokens are judged.")] = None,
    fill: Annotated[
        Fill | None, Option(help="When the target generates a token without drafts.")
    ] = None,
    slots: Annotated[int | None, Option(help="Answers that draft at once.")] = None,
    threads: Annotated[int | None, Option(help="Threads of the draft model.")] = None,
    install_service: Annotated[
        bool | None,
        Option("--install-service", help="Run it in the background, with these options."),
    ] = None,
    remove_service: Annotated[
        bool | None, Option("--remove-service", help="Stop that, and remove it.")
    ] = None,
) -> None:
    """Serve the OpenAI API on this machine: draft here, and have the verifier judge.

    Any other setting is in a file or a variable; picospec config show lists all.
    """
    named = {name: value for name, value in locals().items() if value is not None}
    named.pop("config", None)
    if install_service or remove_service:  # `picospec edge` does that itself
        raise typer.BadParameter("the command is `picospec edge`", param_hint="SERVICE")
    if urls := named.pop("verifier_url", None):
        named |= {"verifier_urls": urls, "verifier_url": None}  # replaces the file's value
    try:
        settings = load(config, os.environ, named)
        check_listening(settings)
    except (ValueError, OSError) as error:
        wrong(error)
    serve(settings)


def serve(settings: EdgeSettings) -> None:
    """Serve until SIGTERM or SIGINT. Raises SystemExit with a message if it cannot start."""
    logs.configure(settings.log_format)
    pin(settings.cores)
    drain = Drain()

    def make() -> FastAPI:
        store, metrics = open_store(os.environ), EdgeMetrics(CollectorRegistry())
        connect = partial(open_verifiers, settings, metrics)
        first = first_draft(settings, store, connect)
        built = build(settings, store, drain, first)
        settle()
        scheme = "http" if settings.tls is None else "https"
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        url = f"{scheme}://{host}:{settings.port}"
        structlog.get_logger("edge_agent").info("serving", url=url)
        return built

    limit = raise_limit()
    if settings.tls is not None:  # uvicorn does not see handshakes
        cut_silent(settings.port, max_connections(limit))
    try:
        check_free("edge", settings.host, settings.port)
    except OSError as error:
        sys.exit(f"the edge cannot start: {error}")
    starting = Starting(make, drain.hurry)
    config = uvicorn.Config(
        starting,
        host=settings.host,
        port=settings.port,
        log_config=None,
        log_level="error",  # else it warns about each malformed request
        access_log=False,
        timeout_graceful_shutdown=GRACE_S,
        timeout_keep_alive=IDLE_S,
        backlog=max_accepted(limit),
        http=protocol(max_connections(limit)),
        **tls_options(settings.tls),
    )
    DrainingServer(config, drain, settings.drain_timeout_s).run()
    if isinstance(starting.error, ModelError | OSError):
        sys.exit(f"the edge cannot start: {starting.error}")
    if starting.error is not None:
        raise starting.error


def tls_options(tls: TlsSettings | None) -> dict[str, Any]:
    """Return the TLS options for uvicorn."""
    if tls is None:
        return {}
    options = {"ssl_certfile": tls.certificate, "ssl_keyfile": tls.key}
    if tls.client_ca is None:
        return options
    return {**options, "ssl_ca_certs": tls.client_ca, "ssl_cert_reqs": ssl.CERT_REQUIRED}


if __name__ == "__main__":
    drop_links(os.environ)
    app(prog_name="picospec edge")
