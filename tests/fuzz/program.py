"""A case as a Python program that needs nothing but diptych."""

from __future__ import annotations

import inspect
import re
import textwrap

from fuzz.case import LEAVES, Case, Values

HEAD = """from __future__ import annotations

import dataclasses
import os

os.environ["DIPTYCH_CPU"] = "{cpu}"
os.environ["DIPTYCH_TIERS"] = "{tiers}"
import numpy as np

import diptych as dp
import diptych.nn.functional as F
from diptych import engine, optim
from diptych.dtypes import as_dtype

{facts}
"""
RUN = '''
def run(device):
    """Everything that can be seen of the step, run once for every size of N."""
    values = Values({seed})
    {kinds} = [getattr(values, kind) for kind in {kinds_text}]
    found = []
    dp.use_device(device)
    dp.set_threads({threads})
    dp.set_eager({eager})
{parameters}
    parameters = [{names}]
{optimizer}
{step}
    for N in {rounds}:
        inputs = [{inputs}]
        found += [v for v in {call} or [] if v is not None]
        found += [v.grad for v in parameters if v.grad is not None] + parameters
        found = [np.array(v) for v in found]
    dp.set_eager(False)
    return found


for n, (a, b) in enumerate(zip(run("cpu"), run("reference"), strict=True)):
    wrong = ~((a == b) | ((a != a) & (b != b)))
    print(n, a.shape, f"{{wrong.sum():,}} of {{wrong.size:,}} wrong")
'''


def as_program(case: Case) -> str:
    """A program that prints how many elements of each result differ from the reference."""
    cpu, *facts = case.target.split()
    changed = ", ".join(facts)
    there = (
        "host = engine.host_target\n"
        f"engine.host_target = lambda name: dataclasses.replace(host(name), {changed})\n"
    )
    compiled = case.mode in ("compiled", "program", "scan")
    inputs = ", ".join(expression for _, expression in case.leaves("x"))
    optimizer = case.optimizer()
    made = "step(*inputs)" if compiled else "step(*map(dp.tensor, inputs))"
    source = case.source() + ("\nstep = dp.compile(step)\n" if compiled else "")
    kinds = [kind for kind in LEAVES if any(f" = {kind}(" in line for line in case.lines)]
    return (
        HEAD.format(cpu=cpu, tiers=case.tiers, facts=there if facts else "")
        + "\n"
        + inspect.getsource(Values)
        + "\n"
        + RUN.format(
            seed=case.seed,
            kinds=", ".join(kinds) + ",",
            kinds_text=kinds,
            threads=case.threads,
            eager=f'{case.mode == "eager"} or device == "reference"',
            parameters="\n".join(f"    {n} = dp.Parameter({e})" for n, e in case.leaves("w")),
            names=", ".join(name for name, _ in case.leaves("w")),
            optimizer=f"    optimizer = {optimizer}" if optimizer else "",
            step=textwrap.indent(re.sub(r"look\('v\d+', ", "str(", source), "    "),
            rounds=list(case.rounds),
            inputs=inputs,
            call=made,
        )
    )
