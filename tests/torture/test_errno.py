"""T3: one call fails, or all do from then on, with each errno that a disk can give, at each place in turn."""

import errno
import os
import shutil
import sys

import pytest
from watched import watched
from workloads import ALL, WORKLOADS, finish, look

from headstart.errors import CacheError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="names of calls and errors are those of Linux")
CODES = ("ENOSPC", "EIO", "EDQUOT", "EROFS", "EFBIG")
FAILING = {"open", "write", "fsync", "replace", "rename", "link", "mkdir"}
REMOVING = {"unlink", "rmdir"}  # they need no space, but a disk that fails, or is read-only by now, refuses them too


class Failing:
    """Fails at the `number`-th call of those in `names`, once or from then on; 0 never fails and only counts."""

    def __init__(self, code, number, persistent, names):
        self.code, self.number, self.persistent, self.names = code, number, persistent, names
        self.calls = 0

    def __call__(self, call):
        self.calls += call.name in self.names
        failing = self.calls >= self.number if self.persistent else self.calls == self.number
        if self.number and failing and call.name in self.names:
            raise OSError(self.code, os.strerror(self.code))
        return call.go()


def disturb(workload, root, failing):
    """Work until the failure; return the error and what was acknowledged. Another kind of error passes through."""
    acknowledged = set()
    with watched(root.parent, failing):
        try:
            workload.work(root, acknowledged.update)
        except CacheError as error:
            return error, acknowledged
    return None, acknowledged


def check_failure(workload, root, failing):
    """Fail at one place; return how many things were acknowledged before."""
    error, acknowledged = disturb(workload, root, failing)
    assert error is not None, "nobody heard of it"
    assert error.errno == failing.code, f"errno {error.errno} in {error!r}"
    assert str(root.parent) in str(error), f"the message names no folder: {error}"
    assert "\n" not in str(error)
    assert failing.names & REMOVING or not list(root.rglob("*.tmp")), "a temporary file is left"
    if root.exists() or acknowledged:
        lost = (workload.safe | acknowledged) - look(root)
        assert not lost, f"{len(lost)} things lost"
    finish(workload, root)
    return len(acknowledged)


@pytest.mark.parametrize("every", [11, pytest.param(1, marks=pytest.mark.torture)], ids=["some", "all"])
@pytest.mark.parametrize("names", [FAILING, FAILING | REMOVING], ids=["writes", "removals too"])
@pytest.mark.parametrize("name", sorted(WORKLOADS))
def test_t3_a_failing_call_gives_one_clear_error_and_loses_nothing(arena, name, names, every):
    workload, template = WORKLOADS[name], arena / "template"
    template.mkdir()
    workload.arrange(template / "cache")
    counting = Failing(errno.EIO, 0, False, names)
    shutil.copytree(template, arena / "base")
    assert disturb(workload, arena / "base" / "cache", counting)[0] is None
    cases = [
        (code, number, persistent)
        for number in range(1, counting.calls + 1)
        for code in CODES
        for persistent in (False, True)
    ]
    acknowledged, wrong = 0, []
    for code, number, persistent in cases[::every]:
        shutil.rmtree(arena / "base")
        shutil.copytree(template, arena / "base")
        failing = Failing(getattr(errno, code), number, persistent, names)
        try:
            acknowledged += check_failure(workload, arena / "base" / "cache", failing)
        except Exception as error:  # noqa: BLE001  (all of them are shown, not only the first)
            wrong.append(f"{code} at call {number}, persistent={persistent}: {error!r}")
    assert not wrong, f"{len(wrong)} of {len(cases[::every])}:\n" + "\n".join(wrong[:12])
    failures = len(cases[::every])
    print(
        f"\nT3 {name}: {failures} failures at {counting.calls} calls, each one CacheError; {acknowledged:,} acknowledged, 0 lost"
    )
    assert failures > 5
    assert acknowledged > 0 or workload.safe == ALL
