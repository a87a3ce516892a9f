"""The forward pass on the CPU as `extract` does it, against the plain eager network, each in a process of its own.

Plain: float32, channels first, batch norms as they are, memory given back to the kernel after each layer, as in any
script. Ours: channels last, batch norms folded, freed memory kept. The weights are random; the embeddings of both sides
are compared.

Run: python benchmarks/forward.py [backbone ...]
"""

import json
import statistics
import subprocess
import sys

TIMES = 3
BACKBONES = ("resnet18", "mobilenet_v3_small", "efficientnet_lite0", "vgg11_bn", "convnext_tiny", "vit_b_32", "swin_t")
PROGRAM = """
import json, sys, time
import torch
from headstart.extract.backbone import BackboneRequest, load_backbone
from headstart.extract.device import CPU_BATCH
from headstart.extract.options import RunOptions, SpaceOptions
from headstart.extract.resolve import resolve

way, name = sys.argv[1:]
generator = torch.Generator().manual_seed(0)
batch = torch.randint(0, 256, (CPU_BATCH, 224, 224, 3), dtype=torch.uint8, generator=generator)
if way == "plain":
    backbone = load_backbone(BackboneRequest(name, "none"))
    backbone.module.to(memory_format=torch.contiguous_format)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (backbone.preprocess.mean, backbone.preprocess.std))
    def embed():
        with torch.inference_mode():
            return backbone.tap((batch.permute(0, 3, 1, 2).contiguous().float() / 255 - mean) / std)
else:
    from pathlib import Path
    import tempfile
    embedder = resolve([SpaceOptions(backbone=name, weights="none")], RunOptions(), Path(tempfile.mkdtemp()))
    def embed():
        return embedder.backbone.embed(batch)
rows = embed()
begin, count = time.perf_counter(), 0
while time.perf_counter() - begin < 4:
    embed()
    count += CPU_BATCH
rate = count / (time.perf_counter() - begin)
print(json.dumps([rate, rows[0].tolist()]))
"""


def measured(way: str, name: str) -> tuple[float, list[float]]:
    done = subprocess.run([sys.executable, "-c", PROGRAM, way, name], capture_output=True, text=True, check=True)
    rate, row = json.loads(done.stdout)
    return rate, row


def main() -> None:
    for name in sys.argv[1:] or BACKBONES:
        pairs = [(measured("plain", name), measured("ours", name)) for _ in range(TIMES)]
        plain, ours = (statistics.median(side[0] for side in column) for column in zip(*pairs, strict=True))
        (_, one), (_, other) = pairs[0]
        difference = max(abs(a - b) for a, b in zip(one, other, strict=True)) / max(map(abs, one))
        ratio = statistics.median(second[0] / first[0] for first, second in pairs)
        print(
            f"{name:<20} plain {plain:7.1f} images/s, ours {ours:7.1f}, ratio {ratio:.2f}, difference {difference:.1e}"
        )
    print("targets: 1.6 for resnet18, 1.8 for mobilenet_v3_small, the same embeddings to 1e-4")


if __name__ == "__main__":
    main()
