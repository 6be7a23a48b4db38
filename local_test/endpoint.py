"""The endpoint stand-in: plays SageMaker for an unmodified boto3 ``sagemaker-runtime`` client.

    python -m local_test.endpoint --models ARCHIVES --container http://127.0.0.1:8080 --base /tmp/ml --port 8090

    client = boto3.client("sagemaker-runtime", endpoint_url="http://127.0.0.1:8090", region_name="us-east-1",
                          aws_access_key_id="local", aws_secret_access_key="local")
    client.invoke_endpoint(EndpointName="local", TargetModel="a.tar.gz", ContentType="application/json", Body=b"...")

When the containers answer their pings, one line with the address is printed to stdout; the log goes to stderr. GET / on
the same port tells the state as JSON. The container must see the same ``--base`` folder (SAGEMAKER_BASE_DIR).
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import threading
import uuid
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from flask import Flask, Request, Response, jsonify, request
from werkzeug.exceptions import HTTPException
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

from local_test import aws, event_stream
from local_test.bucket import Bucket
from local_test.container_http import Call, Container, Limits
from local_test.hosting import Endpoint

log = logging.getLogger(__name__)

_STREAM_ACCEPT = "X-Amzn-SageMaker-Accept"
_STREAM_TYPE = "X-Amzn-SageMaker-Content-Type"


def create_app(endpoint: Endpoint) -> Flask:
    """Return the WSGI application that serves ``endpoint`` under its name."""
    app = Flask(__name__, static_folder=None)

    @app.post("/endpoints/<name>/invocations")
    def invoke(name: str) -> Response:
        answer = endpoint.invoke(_call(endpoint, name, request))
        return Response(answer.body, answer.status, _returned(aws.pick(answer.headers, aws.RETURNED)))

    @app.post("/endpoints/<name>/invocations-response-stream")
    def stream(name: str) -> Response:
        call = _call(endpoint, name, request)
        if accept := request.headers.get(_STREAM_ACCEPT):
            call.headers["Accept"] = accept
        headers, frames = endpoint.stream(call)
        returned = aws.pick(headers, aws.RETURNED)
        if model_type := returned.pop("Content-Type", None):
            returned[_STREAM_TYPE] = model_type
        return Response(frames, 200, _returned({**returned, "Content-Type": event_stream.CONTENT_TYPE}))

    @app.get("/")
    def status() -> Response:
        return jsonify(endpoint.status())

    @app.errorhandler(aws.Refused)
    def refused(error: aws.Refused) -> Response:
        log.info("%s %s: %s", error.status, error.code, error)
        return Response(error.body(), error.status, {**error.headers(), "x-amzn-RequestId": str(uuid.uuid4())})

    @app.errorhandler(Exception)
    def failed(error: Exception) -> Response:  # the edge of the process: a bug of ours must look like AWS's own
        if isinstance(error, HTTPException):
            return refused(aws.Refused(error.code or 500, "UnknownOperationException", str(error.description)))
        log.error("the stand-in itself failed", exc_info=error)
        return refused(aws.Refused(500, "InternalFailure", "the stand-in itself failed; its log has the details"))

    return app


def _call(endpoint: Endpoint, name: str, incoming: Request) -> Call:
    """Return what of the request goes on. Raises Refused for a wrong name or a body over the limit."""
    limit = endpoint.limits.body_bytes
    if (incoming.content_length or 0) > limit:
        raise aws.body_too_long(limit)
    body = incoming.get_data()
    if len(body) > limit:  # sent in chunks, without a Content-Length
        raise aws.body_too_long(limit)
    if name != endpoint.place.endpoint:
        raise aws.endpoint_not_found(endpoint.place, name)
    return Call(body, aws.pick(incoming.headers, aws.FORWARDED), str(uuid.uuid4()))


def _returned(headers: dict[str, str]) -> dict[str, str]:
    own = {"x-amzn-RequestId": str(uuid.uuid4()), "x-Amzn-Invoked-Production-Variant": aws.VARIANT}
    return {"Content-Type": "application/octet-stream", **headers, **own}


class _Protocol(WSGIRequestHandler):
    """Keeps connections alive, sends small answers at once, and logs nothing per request."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Say nothing; what matters is logged where it happens."""


def serve(endpoint: Endpoint, host: str, port: int) -> BaseWSGIServer:
    """Return a threaded server bound to ``host``:``port`` (0 = a free one); call its ``serve_forever``."""
    return make_server(host, port, create_app(endpoint), threaded=True, request_handler=_Protocol)


def _arguments() -> argparse.ArgumentParser:
    default = Limits()
    parser = argparse.ArgumentParser(
        prog="python -m local_test.endpoint",
        description="Plays a SageMaker endpoint on this machine, in front of running containers.",
        epilog=(__doc__ or "").partition("\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--models", type=Path, metavar="DIR", help="folder that plays the S3 prefix; its *.tar.gz are the TargetModels")
    add("--single", action="store_true", help="a single-model endpoint: no TargetModel, calls go to /invocations")
    add("--container", action="append", required=True, metavar="URL", help="address of a container; may be repeated")
    add("--base", type=Path, default=Path("/opt/ml"), metavar="DIR", help="archives are unpacked under DIR/models")
    add("--host", default="127.0.0.1", help="address to listen on (default %(default)s)")
    add("--port", type=int, default=0, help="port to listen on (default: a free one)")
    add("--endpoint-name", default="local", metavar="NAME", help="EndpointName of callers (default %(default)s)")
    add("--invoke-limit-s", type=float, default=default.invoke_s, metavar="S", help="per invocation (%(default)s)")
    add("--load-limit-s", type=float, default=default.load_s, metavar="S", help="per load (%(default)s)")
    add("--ping-every-s", type=float, default=default.ping_every_s, metavar="S", help="pause of pings (%(default)s)")
    add("--ping-limit-s", type=float, default=default.ping_s, metavar="S", help="per ping (%(default)s)")
    add("--ping-failures", type=int, default=default.ping_failures, metavar="N", help="in a row: unhealthy")
    add("--startup-limit-s", type=float, default=default.startup_s, metavar="S", help="until healthy (%(default)s)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or Ctrl-C; 0 then, 1 when no container came into service, 2 for wrong arguments."""
    parser = _arguments()
    args = parser.parse_args(argv)
    if args.single == (args.models is not None):
        parser.error("give either --models DIR (a multi-model endpoint) or --single")
    if args.models is not None and not args.models.is_dir():
        parser.error(f"--models {args.models} is not a folder")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    limits = Limits(
        invoke_s=args.invoke_limit_s,
        load_s=args.load_limit_s,
        ping_s=args.ping_limit_s,
        ping_every_s=args.ping_every_s,
        ping_failures=args.ping_failures,
        startup_s=args.startup_limit_s,
    )
    bucket = Bucket(args.models.resolve(), args.base.resolve()) if args.models else None
    containers = [Container(url, limits.connect_s) for url in args.container]
    endpoint = Endpoint(aws.Place(args.endpoint_name), bucket, containers, limits)
    try:
        server = serve(endpoint, args.host, args.port)
    except OSError as error:
        parser.error(f"cannot listen on {args.host}:{args.port}: {error}")
    return _run(endpoint, server)


def _run(endpoint: Endpoint, server: BaseWSGIServer) -> int:
    stopped = threading.Event()

    def stop(signum: int, frame: FrameType | None) -> None:
        stopped.set()
        for each in endpoint.health:
            each.ask_to_stop()
        threading.Thread(target=server.shutdown, daemon=True).start()  # shutdown waits for serve_forever to end

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    for each in endpoint.health:
        if not each.wait_in_service():
            if stopped.is_set():
                return 0
            print(f"{each.instance.container.url} did not come into service: {each.reason}", file=sys.stderr)
            return 1
        each.start()
    print(f"http://{server.host}:{server.port}", flush=True)
    server.serve_forever()
    server.server_close()
    endpoint.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
