"""Starts one run with a made-up GPU in a container, and prints what it saw. Called by test_containers.py."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

from raysched.backends.vm import VMBackend
from raysched.testing.conformance import PLACE, Hands, new_launch

GPU = "GPU-made-up"

folder, image = Path(sys.argv[1]), sys.argv[2]
hands = Hands(lambda: VMBackend(folder / "runs", dict(os.environ), folder), PLACE)
launch = new_launch(
    "ls /dev/made-up-gpu; env | while read x; do case $x in CDI*|CUDA*) echo $x;; esac; done",
    PLACE,
    {"CUDA_VISIBLE_DEVICES": GPU},
)
print(hands.run(replace(launch, image=image, devices=(GPU,))))
hands.close()
