"""The wire format of protocol buffers: just what ProgramDesc needs.

A message is a list of (field << 3 | kind, value): kind 0 is a varint, 2 is bytes with a length, 5
is four bytes, 1 is eight.
"""

from __future__ import annotations

import struct
from typing import Any


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def integer(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def text(field: int, value: str | bytes) -> bytes:
    """Strings, and messages inside of messages."""
    data = value.encode() if isinstance(value, str) else value
    return varint(field << 3 | 2) + varint(len(data)) + data


def real(field: int, value: float) -> bytes:
    return varint(field << 3 | 5) + struct.pack("<f", value)


class Message:
    """Fields of a message by number; raises ValueError where it is not one."""

    def __init__(self, data: bytes) -> None:
        self.fields: dict[int, list[Any]] = {}
        at = 0
        while at < len(data):
            key, at = _varint(data, at)
            value: Any
            if key & 7 == 0:
                value, at = _varint(data, at)
                value -= (value >> 63) << 64
            elif key & 7 == 2:
                length, at = _varint(data, at)
                value, at = data[at : at + length], at + length
            elif key & 7 in (1, 5):
                code, size = ("<d", 8) if key & 7 == 1 else ("<f", 4)
                value, at = data[at : at + size], at + size
                value = struct.unpack(code, value)[0] if len(value) == size else 0.0
            else:
                raise ValueError(f"kind {key & 7} of field {key >> 3}")
            if at > len(data):
                raise ValueError("it ends too early")
            self.fields.setdefault(key >> 3, []).append(value)

    def integers(self, field: int) -> list[int]:
        """Repeated integers, packed or not."""
        found: list[int] = []
        for value in self.fields.get(field, []):
            if isinstance(value, bytes):
                at = 0
                while at < len(value):
                    one, at = _varint(value, at)
                    found.append(one - ((one >> 63) << 64))
            else:
                found.append(int(value))
        return found

    def integer(self, field: int, default: int = 0) -> int:
        return self.integers(field)[-1] if field in self.fields else default

    def strings(self, field: int) -> list[str]:
        return [value.decode() for value in self.fields.get(field, [])]

    def string(self, field: int) -> str:
        return self.strings(field)[-1] if field in self.fields else ""

    def messages(self, field: int) -> list[Message]:
        return [Message(value) for value in self.fields.get(field, [])]


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ValueError("it ends inside a number")
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
