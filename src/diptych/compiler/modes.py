"""Floating-point modes: round to nearest, subnormals kept, whatever the process has set.

An imported library may have turned on flush-to-zero. Every native entry saves the control register,
sets it, and restores it before it returns; the code between is in functions of its own, never
inlined, so that nothing moves across.
"""

from __future__ import annotations

MXCSR = 0x1F80  # all exceptions masked, round to nearest, no flush-to-zero, no denormals-are-zero


def declarations(triple: str) -> str:
    """What `enter` and `leave` call."""
    if triple.startswith("x86_64"):
        return "declare void @llvm.x86.sse.stmxcsr(ptr)\ndeclare void @llvm.x86.sse.ldmxcsr(ptr)\n"
    if triple.startswith(("aarch64", "arm64")):
        return "declare i64 @llvm.aarch64.get.fpcr()\ndeclare void @llvm.aarch64.set.fpcr(i64)\n"
    return ""


def enter(triple: str) -> list[str]:
    """Save the modes and set them, at the start of a function."""
    if triple.startswith("x86_64"):
        return [
            "  %modes.was = alloca i32",
            "  %modes.now = alloca i32",
            "  call void @llvm.x86.sse.stmxcsr(ptr %modes.was)",
            f"  store i32 {MXCSR}, ptr %modes.now",
            "  call void @llvm.x86.sse.ldmxcsr(ptr %modes.now)",
        ]
    if triple.startswith(("aarch64", "arm64")):
        return [
            "  %modes.was = call i64 @llvm.aarch64.get.fpcr()",
            "  call void @llvm.aarch64.set.fpcr(i64 0)",
        ]
    return []


def leave(triple: str) -> list[str]:
    """Restore what `enter` found."""
    if triple.startswith("x86_64"):
        return ["  call void @llvm.x86.sse.ldmxcsr(ptr %modes.was)"]
    if triple.startswith(("aarch64", "arm64")):
        return ["  call void @llvm.aarch64.set.fpcr(i64 %modes.was)"]
    return []
