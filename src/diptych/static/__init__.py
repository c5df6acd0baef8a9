"""The static panel: explicit programs, captured steps, and their executor."""

from diptych.static.capture import compile
from diptych.static.program import Executor, Program, Startup, data
from diptych.static.scan import scan

__all__ = ["Executor", "Program", "Startup", "compile", "data", "scan"]
