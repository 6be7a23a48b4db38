"""A real HTTP server that plays a container by script: the test double of the thing under rehearsal."""

import json
import threading
import time
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def until(happened):
    """Wait for something that must happen; the test's own time limit ends a wait in vain."""
    while not happened():
        time.sleep(0.002)


class FakeContainer:
    """Holds up to ``capacity`` models and echoes; scripted answers, (status, body), come before that.

    journal: what was asked, in order: ("load", name), ("unload", name), ("invoke", name).
    gates: name of a verb -> an Event that the verb waits for.
    """

    def __init__(self, capacity=100):
        self.capacity = capacity
        self.models = {}
        self.journal = []
        self.loads, self.invokes = deque(), deque()
        self.headers = []
        self.gates = {}
        self.ping_status = self.list_status = 200
        self.page_size = 100
        self.answer_headers = {}
        self.chunks = None
        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()

    def close(self):
        for gate in self.gates.values():
            gate.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def verbs(self):
        return [verb for verb, _ in self.journal]

    def load(self, body):
        name = body["model_name"]
        self._note("load", name)
        with self.lock:
            if self.loads:
                return self.loads.popleft()
            if name in self.models:
                return 409, b'{"message": "exists"}'
            if len(self.models) >= self.capacity:
                return 507, b'{"message": "no room"}'
            self.models[name] = body["url"]
        return 200, b'{"status": "Workers scaled"}'

    def unload(self, name):
        self._note("unload", name)
        with self.lock:
            return (200, b"{}") if self.models.pop(name, None) else (404, b"{}")

    def invoke(self, name, body):
        self._note("invoke", name)
        with self.lock:
            if self.invokes:
                return self.invokes.popleft()
            if name is not None and name not in self.models:
                return 404, b'{"message": "not loaded"}'
        return 200, b"echo:" + body

    def list(self, token):
        with self.lock:
            names = sorted(self.models)
        page = {"models": [{"modelName": n, "modelUrl": "x"} for n in names[token : token + self.page_size]]}
        if token + self.page_size < len(names):
            page["nextPageToken"] = str(token + self.page_size)
        return self.list_status, json.dumps(page).encode()

    def _note(self, verb, name):
        with self.lock:
            self.journal.append((verb, name))
        if verb in self.gates:
            self.gates[verb].wait(30)


def _handler(fake):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args):
            pass

        def do_GET(self):
            if self.path == "/ping":
                self.answer(fake.ping_status, b"{}")
            else:
                self.answer(*fake.list(int(self.path.partition("next_page_token=")[2] or 0)))

        def do_DELETE(self):
            self.answer(*fake.unload(self.path.split("/")[2]))

        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            fake.headers.append(dict(self.headers.items()))
            if self.path == "/models":
                self.answer(*fake.load(json.loads(body)))
            elif self.path == "/invocations" and fake.chunks is not None:
                self.stream(fake.chunks)
            elif self.path == "/invocations":
                self.answer(*fake.invoke(None, body))
            else:
                self.answer(*fake.invoke(self.path.split("/")[2], body))

        def answer(self, status, body):
            if status == 0:  # breaks off without a word
                self.close_connection = True
                return
            self.send_response(status)
            for name, value in {"Content-Type": "text/plain", **fake.answer_headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def stream(self, chunks):
            """None among the chunks breaks the connection off."""
            self.send_response(200)
            self.send_header("Content-Type", "text/plain")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for chunk in chunks:
                if chunk is None:
                    self.close_connection = True
                    return
                self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
            self.wfile.write(b"0\r\n\r\n")

    return Handler
