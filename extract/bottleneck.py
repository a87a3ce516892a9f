"""What bounds a run: the stage that was busiest for the threads it has."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Bottleneck:
    """How busy each stage of a run was while the network was there.

    Attributes
    ----------
    busy : dict of str to float
        Share of the time, 0 to 1, of "decode" (reading of files included, over all its threads), "forward" and "write";
        and of "read" where pictures come from a store.
    device : str
        "cpu", "cuda" or "mps".
    workers : int
        Threads that read and decoded.
    cores : int
        Threads that would be of use.
    """

    busy: dict[str, float]
    device: str
    workers: int
    cores: int

    @classmethod
    def of(
        cls,
        stages: dict[str, float],
        seconds: float,
        device: str,
        workers: int,
        cores: int,
        processes: int = 1,
        writers: int = 1,
        waiting: int = 0,
    ) -> Bottleneck:
        """Measure a run.

        Parameters
        ----------
        stages : dict of str to float
            Busy seconds of "read", "decode", "forward" and "write", summed over threads.
        seconds : float
            Wall time from the moment when the network was there.
        device : str
        workers, cores : int
        processes : int, default 1
            How many shared the work, each with networks of its own.
        writers : int, default 1
            Threads that wrote, in all of them.
        waiting : int, default 0
            Threads beside the workers that did nothing but wait for a store.
        """
        threads = {"decode": workers, "forward": processes, "write": writers}
        spent = {**stages, "decode": stages["read"] + stages["decode"]}
        if waiting:
            threads, spent = {"read": workers + waiting, **threads}, stages
        busy = {name: min(1.0, spent[name] / max(seconds, 1e-9) / count) for name, count in threads.items()}
        return cls(busy, device, workers, cores)

    @property
    def stage(self) -> str:
        """The stage that the run waited for."""
        return max(self.busy, key=lambda name: self.busy[name])

    def line(self) -> str:
        """Return what bounds the run, and what the others could do, in one line."""
        busy = self.busy
        if self.stage == "forward":
            return (
                f"bound by forward: {_percent(busy['forward'])} busy; decoding could feed {_times(busy['decode'])} more"
            )
        if self.stage == "write":
            return f"bound by write: {_percent(busy['write'])} busy; the disk of the cache is slower than the network"
        if self.stage == "read":
            return f"bound by read: {_percent(busy['read'])} busy; the store is slower than decoding and the network"
        used = f"{self.workers} workers of {self.cores} in use"
        if self.device == "cpu":
            return f"bound by decode: {_percent(busy['decode'])} busy, {used}"
        return f"GPU idle {_percent(1 - busy['forward'])}: decoding bounds this run, {used}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _times(share: float) -> str:
    return f"{1 / share:.1f} times" if share > 1e-3 else "a thousand times"
