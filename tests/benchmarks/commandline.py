"""`transferctl` as its users run it: in a process of its own, which answers in JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any


def transferctl(*words: object) -> dict[str, Any]:
    """What the command answers. Raises SystemExit with what it said where it failed."""
    command = [sys.executable, "-m", "transferctl", *map(str, words), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer
