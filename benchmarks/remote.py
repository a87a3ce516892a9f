"""Pictures in a bucket: one request at a time against many, and tars against loose objects, of one server.

The server speaks as much of S3 as is needed, on loopback and in a process of its own; it answers each request after
20 ms, as a store in the same region does. Photographs are read and hashed as `extract` does it, without decoding, which
may be slower here; all sides are read alternately from the same server, and the best of each counts.

Run: HEADSTART_SAMPLES=... python benchmarks/remote.py
"""

import hashlib
import io
import os
import subprocess
import sys
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from headstart.cache import remote
from headstart.extract.access import access_to, in_order_of_bytes
from headstart.extract.bucket import IN_FLIGHT
from headstart.extract.images import ImageList, list_images

PICTURES, SHARD, TIMES = 400, 200, 3
WAIT = 0.02  # seconds before each answer
SERVER = """
import asyncio, hashlib, sys, threading
from xml.sax.saxutils import escape
from aiohttp import web

objects, seen = {}, []
WHEN = "2026-01-01T00:00:00.000Z"

async def answer(request):
    seen.append(request.path)
    key = request.path.removeprefix("/photographs").lstrip("/")
    if request.method == "PUT":
        data = await request.read()
        objects[key] = data, hashlib.md5(data).hexdigest()
        return web.Response(headers={"ETag": f'"{objects[key][1]}"'})
    await asyncio.sleep(float(sys.argv[1]))
    if not key:
        prefix = request.query.get("prefix", "")
        entry = "<Contents><Key>{}</Key><LastModified>{}</LastModified><ETag>{}</ETag><Size>{}</Size></Contents>"
        found = [entry.format(escape(name), WHEN, mark, len(data))
                 for name, (data, mark) in sorted(objects.items()) if name.startswith(prefix)]
        text = f"<ListBucketResult><IsTruncated>false</IsTruncated>{''.join(found)}</ListBucketResult>"
        return web.Response(text=text, content_type="application/xml")
    data, mark = objects[key]
    headers = {"ETag": f'"{mark}"', "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"}
    if request.method == "HEAD":
        return web.Response(headers={**headers, "Content-Length": str(len(data))})
    span = request.http_range
    part = data[span.start or 0 : span.stop]
    return web.Response(body=part, status=206 if span.start is not None else 200, headers=headers)

def count():
    for _ in sys.stdin:
        print(len(seen), flush=True)
        seen.clear()

async def serve():
    application = web.Application(client_max_size=1 << 30)
    application.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(site._server.sockets[0].getsockname()[1], flush=True)
    threading.Thread(target=count, daemon=True).start()
    await asyncio.Event().wait()

asyncio.run(serve())
"""


class Server:
    """The store, in a process of its own."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(WAIT)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{int(self._line())}"
        os.environ.update(AWS_ACCESS_KEY_ID="somebody", AWS_SECRET_ACCESS_KEY="anything")

    def requests(self) -> int:
        """Return how many there were since this was last asked."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return int(self._line())

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()


def put_all(samples: Path) -> int:
    """Put photographs there, loose and in tars, each with other bytes; return how many bytes they have."""
    found = [path.read_bytes() for path in sorted(samples.glob("*/*/*/*.jpg")) if path.stat().st_size < 400_000]
    pictures = [found[number % len(found)] + b"%06d" % number for number in range(PICTURES)]
    urls = [f"s3://photographs/loose/{number:06d}.jpg" for number in range(PICTURES)]
    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        list(pool.map(remote.put, urls, pictures))
    for start in range(0, PICTURES, SHARD):
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as tar:
            for number, picture in enumerate(pictures[start : start + SHARD], start):
                info = tarfile.TarInfo(f"{number:06d}.jpg")
                info.size = len(picture)
                tar.addfile(info, io.BytesIO(picture))
        remote.put(f"s3://photographs/shards/train-{start // SHARD:04d}.tar", packed.getvalue())
    return sum(map(len, pictures))


def rate(images: ImageList, in_flight: int | None = None) -> float:
    """Return the images a second that are read and hashed, so many at a time; as many as `extract` where it is None."""
    names, workers = images.paths, len(os.sched_getaffinity(0))
    todo = in_order_of_bytes(names, images.stat, np.arange(len(names)))
    access = access_to(os.fsencode(str(images.base)), names, images.stat, todo)

    def read(row: int) -> bytes:
        return hashlib.sha256(access.read(row, names[row])[0]).digest()

    with ThreadPoolExecutor(in_flight or workers + access.in_flight) as pool:
        begin = time.perf_counter()
        digests = set(pool.map(read, todo.tolist()))
        seconds = time.perf_counter() - begin
    assert len(digests) == PICTURES
    return PICTURES / seconds


def main() -> None:
    server = Server()
    try:
        size = put_all(Path(os.environ["HEADSTART_SAMPLES"]))
        loose, shards = list_images("s3://photographs/loose"), list_images("s3://photographs/shards")
        best: dict[str, float] = {}
        requests: dict[str, int] = {}
        sides = {
            "loose objects, one request at a time": (loose, 1),
            "loose objects, many": (loose, None),
            "tars": (shards, None),
        }
        rate(loose)  # libraries are imported and connections made by then
        for _ in range(TIMES):
            for name, (images, in_flight) in sides.items():
                server.requests()
                best[name] = max(best.get(name, 0.0), rate(images, in_flight))
                requests[name] = server.requests()
    finally:
        server.close()
    print(f"{PICTURES} photographs, {size / 1e6:.0f} MB; each request is answered after {1000 * WAIT:.0f} ms")
    for name, value in best.items():
        print(f"{name:<38} {value:6.0f} images/s, {requests[name]:4} requests")
    one, many, tars = best.values()
    print(
        f"many at a time against one: {many / one:.1f} times; tars against many loose objects: {tars / many:.1f} times"
    )


if __name__ == "__main__":
    main()
