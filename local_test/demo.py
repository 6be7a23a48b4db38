"""The demo: four kinds of models behind one endpoint, on this machine, invoked through boto3.

    make demo                       or: python -m local_test.demo
    KEEP=1 make demo                leaves server and endpoint running and says how to talk to them

Builds the archives under .demo/archives at the first run (about a minute), starts berth and the endpoint stand-in on
free loopback ports, asks every model something a person can check, under a memory limit that makes models give way to
each other, shows twenty copies of one model in the memory of one, and four models answering where two have room, and
stops what it started. Exit code 1 when an answer is wrong or something does not start.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from types import FrameType

from local_test import archives, demo_memory
from local_test import demo_checks as checks
from local_test.demo_session import Session, run
from local_test.learning import NotLearnt
from local_test.processes import ROOT, NotStarted, Process, free_port, server_environment
from local_test.terminal import heading, say

ARCHIVES = ROOT / ".demo" / "archives"
_ENDPOINT = "demo"
_ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main() -> int:
    """Run the demo; returns the exit code."""
    if len(sys.argv) > 1:
        print((__doc__ or "").strip())
        return 0 if sys.argv[1] in ("-h", "--help") else 2
    for number in _ENDINGS:
        signal.signal(number, _leave)
    keep = os.environ.get("KEEP", "") not in ("", "0")
    try:
        built = _build()
        with ExitStack() as stack:
            session = _start(stack, built)
            wrong = [*run(session), *demo_memory.run(ARCHIVES / "sentences.tar.gz", session.place)]
            if keep:
                _say_how_to_talk(session)
                stack.pop_all()
    except (NotLearnt, NotStarted) as error:
        say(f"\n{error}")
        return 1
    except KeyboardInterrupt:
        say("\nstopped")
        return 130
    heading("Result")
    for sentence in wrong:
        say(f"  WRONG: {sentence}")
    say("  everything that was asked was answered rightly" if not wrong else f"  {len(wrong)} wrong answers, see above")
    return 1 if wrong else 0


def _build() -> list[archives.Built]:
    """Build or find the archives. Raises NotLearnt."""
    heading("1. Archives")
    built = archives.build_all(ARCHIVES)
    for each in built:
        state = "built" if each.fresh else "kept from an earlier run"
        say(f"  {os.path.relpath(each.file)}  {each.file.stat().st_size / 2**20:.1f} MiB, {state}")
    return built


def _start(stack: ExitStack, built: list[archives.Built]) -> Session:
    """Start server and stand-in; ``stack`` stops them. Raises NotStarted."""
    heading("2. Server and endpoint")
    place = Path(tempfile.mkdtemp(prefix="berth-demo-"))
    stack.callback(shutil.rmtree, place, ignore_errors=True)
    base, port = place / "ml", free_port()
    (base / "models").mkdir(parents=True)
    limit = checks.memory_limit([archives.model_bytes(each.file) for each in built])
    environment = server_environment(place, port, BERTH_MEMORY_LIMIT=str(limit))
    server = Process("the server", ["container", "serve"], environment, place / "server.log")
    stack.callback(server.stop)
    url = f"http://127.0.0.1:{port}"
    took_s = server.wait_ready(f"{url}/ping", within_s=60)
    say(f"  berth serves on {url} (pid {server.pid}), ready in {took_s:.1f} s")
    say(f"  its models may take {limit / 2**20:.1f} MiB, so the two largest do not fit together")
    arguments = ["local_test.endpoint", "--models", str(ARCHIVES), "--container", url, "--base", str(base)]
    endpoint = Process(
        "the endpoint", [*arguments, "--endpoint-name", _ENDPOINT], dict(os.environ), place / "endpoint.log"
    )
    stack.callback(endpoint.stop)
    endpoint_url = endpoint.first_line()
    say(f"  the endpoint stand-in plays SageMaker on {endpoint_url} (pid {endpoint.pid})")
    return Session(endpoint_url, _ENDPOINT, url, place, {"server": server, "endpoint": endpoint})


def _say_how_to_talk(session: Session) -> None:
    pids = " ".join(str(process.pid) for process in session.processes.values())
    heading("Left running")
    say(f"""  Through the endpoint, as through SageMaker:

    import boto3
    client = boto3.client("sagemaker-runtime", endpoint_url="{session.endpoint_url}", region_name="us-east-1",
                          aws_access_key_id="local", aws_secret_access_key="local")
    answer = client.invoke_endpoint(EndpointName="{session.endpoint}", TargetModel="prose.tar.gz",
                                    ContentType="application/json", Body=b'{{"inputs": "Down, down, down."}}')
    print(answer["Body"].read())

    local_test/predict.sh -u {session.endpoint_url} -e {session.endpoint} prose.tar.gz local_test/payloads/prose.json

  The server itself:  curl {session.server_url}/models        logs: {session.place}
  To stop both:       kill {pids}; rm -r {session.place}""")


def _leave(signum: int, frame: FrameType | None) -> None:
    for number in _ENDINGS:
        signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C must not cut the clearing up short
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
