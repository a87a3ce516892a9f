"""Photographs in a bucket, put there without a request each, and the smallest network to embed them with."""

import threading
from pathlib import Path

SMALL = {"backbone": "mobilenet_v3_small", "weights": "none", "resize": 32, "crop": 32, "batch_size": 8}


def hold(url: str, data: bytes) -> str:
    """Keep an object in the store of this process."""
    from moto.core import DEFAULT_ACCOUNT_ID
    from moto.s3.models import s3_backends

    bucket, _, key = url.removeprefix("s3://").partition("/")
    s3_backends[DEFAULT_ACCOUNT_ID]["aws"].put_object(bucket, key, data)
    return url


def upload(folder: Path, url: str) -> str:
    """Keep the photographs of a folder below a URL."""
    for path in sorted(folder.rglob("*.jpg")):
        hold(f"{url}/{path.relative_to(folder)}", path.read_bytes())
    return url


class Gate:
    """Lets requests for objects through once so many of them wait at a time."""

    def __init__(self, wanted: int, ending: str) -> None:
        self.ending = ending
        self.wanted, self.inside, self.most = wanted, 0, 0
        self.changed = threading.Condition()

    def __call__(self, method: str, path: str) -> bool:
        if method == "GET" and path.endswith(self.ending):
            with self.changed:
                self.inside += 1
                self.most = max(self.most, self.inside)
                self.changed.notify_all()
                self.changed.wait_for(lambda: self.most >= self.wanted, timeout=10)
                self.inside -= 1
        return False
