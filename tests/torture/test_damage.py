"""T4: every byte flipped and files cut everywhere, for every kind of file and every reader: nothing wrong is believed.

`damage` does it in a process of its own, so that a crash is seen as well.
"""

import pytest

SOME_OR_ALL = pytest.mark.parametrize(
    ("every", "draws"), [(41, 20), pytest.param(1, 1000, marks=pytest.mark.torture)], ids=["some", "all"]
)


def check(report, title):
    """Print the counts of each reader; return them summed by outcome."""
    for reader, counts in report["counts"].items():
        total = {}
        for name, number in counts.items():
            outcome = name.split()[1]
            total[outcome] = total.get(outcome, 0) + number
        print(
            f"\nT4 {title}, {reader}: {sum(total.values()):,} damages to {report['bytes']:,} bytes: {counts}; ", end=""
        )
        print(f"{total.get('silent', 0)} silent")
        assert total.get("silent", 0) == 0, counts
        assert total["seen"] > 0
        # Only damage that keeps the length can miss what a reader looks at.
        assert not {"cut harmless", "longer harmless", "zeros harmless"} & set(counts) or title != "part"


@SOME_OR_ALL
@pytest.mark.parametrize("kind", ["part", "listing", "space", "memo"])
def test_t4_no_damage_is_believed(run_program, arena, kind, every, draws):
    step = every if kind in ("part", "listing") else 1  # the others have a few hundred bytes
    report = run_program("damage.py", kind, arena, step, draws)
    check(report, kind)
