"""The static panel: explicit programs, captured steps, and their executor."""

from diptych.static.capture import compile
from diptych.static.executor import Executor, Startup, Trace
from diptych.static.program import Program, data
from diptych.static.scan import scan

__all__ = ["Executor", "Program", "Startup", "Trace", "compile", "data", "scan"]
