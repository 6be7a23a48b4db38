"""gunicorn's settings and the application it serves: ``gunicorn -c python:container.front.gunicorn_conf``.

The one place of the front that reads settings. The values below were tried; design.md section 2 says why.
"""

from __future__ import annotations

import os
from typing import Any

from container import collector
from container.front import asgi
from container.front.worker import JsonLogger
from container.lifeline import die_with_parent
from container.settings import Settings
from container.wire.client import Client

_settings = Settings.of_process()

wsgi_app = "container.front.gunicorn_conf:application()"
proc_name = "berth front"
bind = f"[{_settings.host}]:{_settings.port}" if ":" in _settings.host else f"{_settings.host}:{_settings.port}"
workers = _settings.front_workers
worker_class = "container.front.worker.Worker"
asgi_loop = "uvloop"
asgi_lifespan = "on"
#: The C parser (gunicorn_h1c 0.6.9) drops keep-alive connections after bodies over 300 KB.
http_parser = "python"
#: A caller that hangs up has its task, and with it its request to the engine, cancelled at once.
asgi_disconnect_grace_period = 0
backlog = 2048
worker_connections = 2000
#: Longer than the 60 s after which load balancers and the platform drop idle connections.
keepalive = 75
timeout = 30
graceful_timeout = 20
control_socket_disable = True
#: Heartbeat files: RAM where there is some, so that a slow disk never stalls a worker.
worker_tmp_dir = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
logger_class = JsonLogger
loglevel = _settings.log_level
accesslog = None


def post_fork(server: Any, worker: Any) -> None:
    """Tie a worker's life to the master's; the master ends only after its workers, unless it is killed."""
    die_with_parent(server.pid)


def post_worker_init(worker: Any) -> None:
    """Set aside what was imported: no collection walks it again."""
    collector.settle()


def application() -> asgi.App:
    """Return the application of one worker process."""
    client = Client(str(_settings.run_dir / "engine.sock"), f"front-{os.getpid()}")
    return asgi.create_app(client, _settings)
