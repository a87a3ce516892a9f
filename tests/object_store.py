"""A real S3 server on loopback, and what goes wrong between it and a client: slow reads, refusals, cut connections."""

import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

REFUSAL = (
    b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>SlowDown</Code>'
    b"<Message>Please reduce your request rate.</Message></Error>"
)
FORBIDDEN = (
    b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>%s</Code><Message>This is not for you.</Message></Error>'
)


@dataclass
class Faults:
    """What happens to the requests that `meets` chooses, by method and path; each is one fault, and they are counted.

    Attributes
    ----------
    meets : callable
        Told method and path; which requests meet a fault at all.
    wait : float
        Seconds before each answer.
    refuse : int
        So many requests are answered by 503 SlowDown.
    cut : int
        So many answers end, and the connection with them, in the middle of the object.
    forbid : str
        All requests are answered by 403 with this code, such as AccessDenied.
    seen : list of tuple of (str, str)
        Method and path of every request.
    done : dict of str to int
        How many requests met which fault.
    """

    meets: Callable[[str, str], bool] = lambda method, path: True
    wait: float = 0.0
    refuse: int = 0
    cut: int = 0
    forbid: str = ""
    seen: list[tuple[str, str]] = field(default_factory=list)
    done: dict[str, int] = field(default_factory=dict)
    lock: Any = field(default_factory=threading.Lock)

    def reset(self, **changes: Any) -> None:
        fresh = Faults(**changes)
        for name in ("meets", "wait", "refuse", "cut", "forbid"):
            setattr(self, name, getattr(fresh, name))
        self.seen.clear()
        self.done.clear()

    def next_of(self, kind: str) -> bool:
        with self.lock:
            if getattr(self, kind) <= 0:
                return False
            setattr(self, kind, getattr(self, kind) - 1)
            self.done[kind] = self.done.get(kind, 0) + 1
            return True


class Faulty:
    """A WSGI application between the server and the store."""

    def __init__(self, store: Any, faults: Faults) -> None:
        self.store = store
        self.faults = faults

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        faults = self.faults
        faults.seen.append((method, path))
        if not faults.meets(method, path):
            return self.store(environ, start_response)
        if faults.wait:
            time.sleep(faults.wait)
        if faults.next_of("refuse"):
            return self._answer(start_response, "503 Slow Down", REFUSAL)
        if faults.forbid:
            return self._answer(start_response, "403 Forbidden", FORBIDDEN % faults.forbid.encode())
        if method == "GET" and faults.next_of("cut"):
            return self._cut(self.store(environ, start_response))
        return self.store(environ, start_response)

    @staticmethod
    def _answer(start_response: Any, status: str, content: bytes) -> Iterable[bytes]:
        start_response(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(content)))])
        return [content]

    @staticmethod
    def _cut(answer: Iterable[bytes]) -> Iterator[bytes]:
        """Send half of what was announced, and end the connection as a crash would."""
        whole = b"".join(answer)
        yield whole[: len(whole) // 2]
        raise ConnectionAbortedError("cut in the middle of an object")


@dataclass
class ObjectStore:
    """A server at `url` with a bucket, and its faults."""

    url: str
    bucket: str
    faults: Faults

    @property
    def root(self) -> str:
        return f"s3://{self.bucket}"

    def hold(self, url: str, data: bytes) -> None:
        """Keep an object without a request, which is quicker for a thousand of them."""
        from moto.core import DEFAULT_ACCOUNT_ID
        from moto.s3.models import s3_backends

        s3_backends[DEFAULT_ACCOUNT_ID]["aws"].put_object(self.bucket, url.removeprefix(f"{self.root}/"), data)

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs, in the variables that the store's own tools read."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "somebody",
            "AWS_SECRET_ACCESS_KEY": "anything",
            "AWS_DEFAULT_REGION": "us-east-1",
        }


def serving(bucket: str = "photographs") -> Iterator[ObjectStore]:
    """Serve a store with one empty bucket while the generator is open."""
    import boto3
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"

        def log(self, *_: Any) -> None:
            pass

    faults = Faults()
    application = Faulty(DomainDispatcherApplication(create_backend_app), faults)
    server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=Quiet)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    store = ObjectStore(f"http://127.0.0.1:{server.server_port}", bucket, faults)
    known = store.environment
    # What an earlier server of this process was given is still there.
    urllib.request.urlopen(urllib.request.Request(f"{store.url}/moto-api/reset", method="POST")).close()
    client = boto3.client(
        "s3",
        endpoint_url=store.url,
        aws_access_key_id=known["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=known["AWS_SECRET_ACCESS_KEY"],
        region_name=known["AWS_DEFAULT_REGION"],
    )
    client.create_bucket(Bucket=bucket)
    faults.reset()
    try:
        yield store
    finally:
        server.shutdown()
        thread.join()
