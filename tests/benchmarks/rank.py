"""How long `rank` takes, cold: ten architectures with random weights, 1,000 photographs at 64 pixels.

    TRANSFERCTL_REAL_DATA=… python tests/benchmarks/rank.py [CLASSES]

CLASSES: 50 of 20 images each unless given; 200 have 5 each. Every backbone starts from an empty cache, and the process
from nothing; the bar is two minutes on two cores.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TEN = (
    "resnet18", "resnet50", "densenet121", "mobilenet_v3_small", "efficientnet_b0", "regnet_y_400mf", "convnext_tiny",
    "shufflenet_v2_x1_0", "vgg11_bn", "vit_b_16",
)  # fmt: skip
IMAGES = 1000


def main() -> None:
    classes = int(sys.argv[1]) if len(sys.argv) > 1 else 50
    photographs = Path(os.environ["TRANSFERCTL_REAL_DATA"]) / "tiny-imagenet-mini"
    names = sorted(path.name for path in (photographs / "train").iterdir())[:classes]
    with tempfile.TemporaryDirectory() as folder:
        spec = Path(folder) / "ten.yaml"
        train = {"path": str(photographs / "train"), "classes": names, "per_class": IMAGES // classes}
        values = {
            "backbone": f"{TEN[0]}",
            "preprocess": {"resize": 64, "crop": 64},
            "target": {"train": train, "val": str(photographs / "val")},
            "cache": str(Path(folder) / "cache"),
        }
        spec.write_text(json.dumps(values), encoding="utf-8")  # JSON is YAML
        backbones = [word for name in TEN for word in ("--backbone", f"{name}:none")]
        command = [sys.executable, "-m", "transferctl", "rank", str(spec), *backbones, "--json", "--runs-dir", folder]
        started = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        took = time.monotonic() - started
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    answer = json.loads(done.stdout)
    for one in answer["backbones"]:
        print(f"{one['backbone']:26} {100 * one['accuracy']:5.1f} %  {one['elapsed_s']:5.1f} s  D {one['feature_dim']}")
    print(f"{answer['n']:,} images, {classes} classes, {len(answer['backbones'])} backbones: {took:.1f} s, "
          f"{used.ru_utime + used.ru_stime:.1f} s of processors, at most {used.ru_maxrss / 1024:,.0f} MiB")  # fmt: skip


if __name__ == "__main__":
    main()
