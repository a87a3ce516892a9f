"""Many clients of a server at once, light enough to share its cores: plain sockets, in one process of their own.

`python callers.py HOST PORT CLIENTS SECONDS FOLDER` prints one JSON object, which `Calls` reads.
"""

import asyncio
import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Calls:
    """What became of the requests of some clients.

    Attributes
    ----------
    seconds : list of float
        From the first byte sent to the last one received, of each request that was answered with 200, ascending.
    wall : float
        From the first request to the last answer.
    errors : list of str
        What was answered, or raised, instead.
    answers : dict of str to list of float
        The probabilities that came for each picture, by its path; of several answers, those that differ.
    """

    seconds: list[float]
    wall: float
    errors: list[str]
    answers: dict[str, list[list[float]]]

    @property
    def rate(self) -> float:
        """Requests answered a second."""
        return len(self.seconds) / self.wall

    def percentile(self, share: float) -> float:
        """Return the time that this share of the requests took at most, in milliseconds."""
        return 1000 * self.seconds[min(len(self.seconds) - 1, int(share * len(self.seconds)))]


def call(host: str, port: int, clients: int, seconds: float, folder: Path) -> Calls:
    """Let clients ask for one picture after the other, each as soon as it has its answer."""
    command = [sys.executable, __file__, host, str(port), str(clients), str(seconds), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60, check=True)
    return Calls(**json.loads(done.stdout))


def _request(path: Path, host: str, port: int) -> bytes:
    body = path.read_bytes()
    head = f"POST /predict HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def _ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> tuple[str, bytes]:
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    return head.split(b" ", 2)[1].decode(), await reader.readexactly(int(length.split(b":")[1]))


async def _main(host: str, port: int, clients: int, seconds: float, folder: Path) -> Calls:
    paths = sorted(folder.rglob("*.jpg"))
    requests = [_request(path, host, port) for path in paths]
    calls = Calls([], 0.0, [], {str(path): [] for path in paths})
    begin = time.perf_counter()

    async def client(number: int) -> None:
        reader, writer = await asyncio.open_connection(host, port)
        turn = number
        while time.perf_counter() < begin + seconds:
            turn = (turn + 7) % len(paths)
            asked = time.perf_counter()
            status, body = await _ask(reader, writer, requests[turn])
            took = time.perf_counter() - asked
            if status == "200":
                calls.seconds.append(took)
                _note(calls.answers[str(paths[turn])], json.loads(body))
            else:
                calls.errors.append(f"{status} {body.decode()}")
        writer.close()

    for error in await asyncio.gather(*map(client, range(clients)), return_exceptions=True):
        if error is not None:
            calls.errors.append(repr(error))
    calls.seconds.sort()
    return dataclasses.replace(calls, wall=time.perf_counter() - begin)


def _note(answers: list[list[float]], answer: dict) -> None:
    found = list(answer["predictions"][0]["probabilities"].values())
    if found not in answers:
        answers.append(found)


if __name__ == "__main__":
    host, port, clients, seconds, folder = sys.argv[1:]
    calls = asyncio.run(_main(host, int(port), int(clients), float(seconds), Path(folder)))
    print(json.dumps(dataclasses.asdict(calls)))
