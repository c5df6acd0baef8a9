"""The exceptions of diptych, and the three lines every message has: rule, facts, cure.

DiptychError
  ShapeError  DtypeError  ValueRangeError       the program asks for something that has no meaning
  FeedError  StartupError  DeviceError          the run lacks something it needs
  FileFormatError  MissingFileError             a file is broken, or not there
  UnwritableFileError                           a file could not be written
  MissingExtraError                             an optional dependency is not installed
  ObservedWhileRecording  FrozenValueError      a value was looked at inside a static program
  MissingNameError                              PyTorch's name for something, or one of nothing
  GradientError                                 a gradient is not what differences give
  GraphError  RecompileError                    a graph is not well formed; a compile was forbidden
  InternalError                                 a bug of ours; please report it
"""

from __future__ import annotations

import os
import sys
from types import CodeType, FrameType

PACKAGE = os.path.dirname(os.path.abspath(__file__)) + os.sep
_SEEN: dict[int, tuple[bool, CodeType]] = {}  # by id: whether code is of this package


def author_frame() -> FrameType | None:
    """The nearest frame outside this package."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and is_own(frame):
        frame = frame.f_back
    return frame


def is_own(frame: FrameType) -> bool:
    """Whether a frame runs code of this package."""
    code = frame.f_code
    seen = _SEEN.get(id(code))
    if seen is None:
        own = code.co_filename.startswith(PACKAGE) or generated(frame)
        seen = _SEEN[id(code)] = (own, code)
    return seen[0]


def author_line() -> tuple[str, int]:
    """File and line of the nearest frame outside this package."""
    frame = author_frame()
    return ("?", 0) if frame is None else (frame.f_code.co_filename, frame.f_lineno)


def generated(frame: FrameType) -> bool:
    """Whether a frame runs code that Python wrote for a dataclass or tuple of this package."""
    module = str(frame.f_globals.get("__name__", ""))
    own = module.startswith(("diptych.", "namedtuple_"))
    return own and frame.f_code.co_filename == "<string>"


class DiptychError(Exception):
    """Base of all errors raised on purpose; `rule`, `facts` and `cure` are the three lines."""

    def __init__(self, rule: str, facts: str = "", cure: str = "") -> None:
        facts = facts.replace("\n", " ")
        self.rule, self.facts, self.cure = rule, facts, cure
        lines = [rule]
        file, line = author_line()
        place = f"{os.path.basename(file)}:{line}"
        if facts and "    (" not in facts:
            facts = f"{facts}    ({place})"
        if facts:
            lines.append(f"  got  {facts}")
        if cure:
            lines.append(f"  try  {cure}")
        super().__init__("\n".join(lines))


class ShapeError(DiptychError, ValueError):
    """Shapes that do not fit together."""


class DtypeError(DiptychError, TypeError):
    """A dtype that the operator does not take."""


class ValueRangeError(DiptychError, ValueError):
    """A value outside the range that an operator takes (a label, an index, a probability)."""


class FeedError(DiptychError, ValueError):
    """A feed or fetch that does not fit the program."""


class StartupError(DiptychError, RuntimeError):
    """A parameter is used before its startup program ran."""


class DeviceError(DiptychError, RuntimeError):
    """A device, target or CPU that is not there."""


class FileFormatError(DiptychError, ValueError):
    """A file is not what its name says."""


class MissingFileError(DiptychError, FileNotFoundError):
    """A file that is needed is not there."""


class UnwritableFileError(DiptychError, OSError):
    """A file could not be written; what was there before is unchanged."""


class MissingExtraError(DiptychError, ImportError):
    """An optional dependency is not installed."""


class ObservedWhileRecording(DiptychError, RuntimeError):
    """A value was read inside a static program, where there is none yet."""


class FrozenValueError(DiptychError, RuntimeError):
    """Something that changes from call to call would silently become a constant of a program."""


class GraphError(DiptychError, ValueError):
    """A graph or its text is not well formed."""


class MissingNameError(DiptychError, AttributeError):
    """A name that is not there; `hasattr` says no."""


class GradientError(DiptychError, AssertionError):
    """A gradient that central differences contradict."""


class RecompileError(DiptychError, RuntimeError):
    """A new compile inside `no_recompile`."""


class InternalError(DiptychError, RuntimeError):
    """A bug in diptych."""
