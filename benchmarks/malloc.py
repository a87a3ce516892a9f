"""What it is worth to let malloc keep freed memory: EfficientNet-Lite0 on the CPU, each way in its own process.

Run: python benchmarks/malloc.py
"""

import subprocess
import sys

PROGRAM = """
import sys, time, torch
from headstart.extract.backbone import BackboneRequest, load_backbone
from headstart.extract.device import CPU_BATCH, keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
backbone = load_backbone(BackboneRequest("efficientnet_lite0")).to("cpu")
batch = torch.randint(0, 256, (CPU_BATCH, 224, 224, 3), dtype=torch.uint8)
backbone.embed(batch)
begin, count = time.perf_counter(), 0
while time.perf_counter() - begin < 5:
    backbone.embed(batch)
    count += CPU_BATCH
print(count / (time.perf_counter() - begin))
"""


def rate(way: str) -> float:
    done = subprocess.run([sys.executable, "-c", PROGRAM, way], capture_output=True, text=True, check=True)
    return float(done.stdout)


def main() -> None:
    pairs = [(rate("returned"), rate("kept")) for _ in range(3)]
    for returned, kept in pairs:
        print(f"images/s: returned to the kernel {returned:6.1f}, kept {kept:6.1f}, ratio {kept / returned:.2f}")
    print(f"median ratio {sorted(kept / returned for returned, kept in pairs)[1]:.2f}")


if __name__ == "__main__":
    main()
