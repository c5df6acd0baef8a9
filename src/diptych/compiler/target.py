"""One description per target CPU: the facts that choose vector widths and tiles, never bits."""

from __future__ import annotations

from dataclasses import dataclass

from diptych.errors import DeviceError

LINE = 64  # bytes that memory and caches give at once, on every target


@dataclass(frozen=True)
class Target:
    """`cpu` and `features` are LLVM's names; `lanes` the f32 lanes of one register."""

    name: str
    triple: str
    cpu: str
    features: str
    lanes: int
    registers: int
    has_fma: bool
    has_masks: bool
    has_round: bool = True  # instructions for floor, ceil and rint
    fma_per_cycle: int = 2  # multiply-adds of whole registers
    loads_per_cycle: int = 2
    broadcast: float = 0.5  # loads that one element for all lanes counts as


_LEVELS = {
    "x86-64": (4, 16, False, False, False),
    "x86-64-v2": (4, 16, False, False, True),
    "x86-64-v3": (8, 16, True, False, True),
    "x86-64-v4": (16, 32, True, True, True),
}

_V3 = ("avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe")
_NEEDS = {
    "x86-64-v2": ("sse4.2", "popcnt"),
    "x86-64-v3": _V3,
    "x86-64-v4": (*_V3, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"),
}


def describe(name: str, triple: str, host_cpu: str, host_features: dict[str, bool]) -> Target:
    """The target called `name`: an x86-64 level, `generic` (aarch64), or `native`."""
    if name in _LEVELS:
        if not triple.startswith("x86_64"):
            raise DeviceError(f"the CPU level {name} is for x86-64", f"this is {triple}", "native")
        missing = [f for f in _NEEDS.get(name, ()) if not host_features.get(f)]
        if missing:
            raise DeviceError(
                "DIPTYCH_CPU may ask for less than the host, not for more",
                f"{name} needs {', '.join(missing)}, which {host_cpu} lacks",
                "use native",
            )
        return Target(name, triple, name, "", *_LEVELS[name])
    if name == "aarch64":
        return Target(name, "aarch64-unknown-linux-gnu", "generic", "+neon", 4, 32, True, False)
    if name != "native":
        raise DeviceError(
            "DIPTYCH_CPU takes native, " + ", ".join(_LEVELS), repr(name), "use native"
        )
    features = ",".join(f"{'+' if on else '-'}{f}" for f, on in sorted(host_features.items()))
    if triple.startswith("aarch64") or triple.startswith("arm64"):
        return Target(name, triple, host_cpu, features, 4, 32, True, False)
    if all(host_features.get(f) for f in ("avx512f", "avx512vl", "avx512bw", "avx512dq")):
        known = (name, triple, host_cpu, features, 16, 32, True, True)
        if host_cpu == "znver4":  # works on 512 bits in two halves
            return Target(*known, fma_per_cycle=1, loads_per_cycle=1)
        return Target(*known, fma_per_cycle=2, loads_per_cycle=1, broadcast=1.0)
    if host_features.get("avx2") and host_features.get("fma"):
        return Target(name, triple, host_cpu, features, 8, 16, True, False)
    fma, rounds = (bool(host_features.get(feature)) for feature in ("fma", "sse4.1"))
    return Target(name, triple, host_cpu, features, 4, 16, fma, False, rounds)
