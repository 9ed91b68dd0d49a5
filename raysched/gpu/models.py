"""The GPU models that can be simulated, with the memory that such cards report."""

from __future__ import annotations

MODELS: dict[str, int] = {
    "A10": 23028,
    "A100-40GB": 40960,
    "A100-80GB": 81920,
    "A30": 24576,
    "A40": 46068,
    "B200": 183359,
    "B300": 275040,
    "GB200": 189471,
    "GB300": 284208,
    "GH200-96GB": 97871,
    "H20-96GB": 97871,
    "H20-141GB": 143771,
    "H100-80GB": 81559,
    "H100-94GB": 95830,
    "H200-141GB": 143771,
    "L4": 23034,
    "L40S": 46068,
    "RTX-4090": 24564,
    "RTX-PRO-6000": 97887,
    "T4": 15360,
    "V100-32GB": 32768,
}
"""MiB by model: the total that `nvidia-smi` prints for such a card with its factory settings (ECC on, where
the card has it) under drivers 525 to 595, from captures that their owners published. Older drivers print up
to 1 % less, for they left out what the driver keeps for itself."""


def model_of_product(product: str) -> str:
    """The model in an NVML product name: the name without its leading `NVIDIA`, all else kept, so that what
    people search for still works. `NVIDIA A100-SXM4-80GB` is `A100-SXM4-80GB`, `Tesla T4` stays `Tesla T4`.
    """
    return product.strip().removeprefix("NVIDIA ").strip()
