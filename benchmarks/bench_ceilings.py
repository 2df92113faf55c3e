"""What the device can do at most: a copy, and a large matrix product in each precision."""

import torch

from benchmarks.measure import Contender, Contest, Device, Prepared
from benchmarks.presets import Preset

DTYPES = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
}


def contests(preset: Preset, device: Device) -> list[Contest]:
    """A copy, and products that share their size."""
    effort = {"rounds": preset.rounds, "warm_up": preset.warm_up, "each": device.flush}

    def copy(_) -> Prepared:
        source = torch.empty(preset.copied, dtype=torch.uint8, device=device.device).fill_(1)
        target = torch.empty_like(source)
        return Prepared(lambda: target.copy_(source), {"bytes": 2 * preset.copied})

    def product(precision: str) -> Contender:
        def build(_) -> Prepared:
            n = preset.product
            a, b = (torch.randn(n, n, device=device.device).to(DTYPES[precision]) for _ in range(2))
            made = torch.empty_like(a)

            def work():
                torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
                torch.mm(a, b, out=made)

            return Prepared(work, {"flops": 2 * n**3})

        return Contender(precision, build, precision)

    precisions = ["fp32", "bf16"] + ["tf32"] * device.gpu
    return [
        Contest("ceiling", "copy", [Contender("copy", copy)], **effort),
        Contest("ceiling", "product", [product(p) for p in precisions], **effort),
    ]


def test_ceiling(contest, contender, measured):
    measured(contest, contender)
