"""`scan`: a compiled step over a whole data set in one native call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from diptych import engine
from diptych.dtypes import Dim, Dimension, TensorType, as_dtype, i64
from diptych.errors import DiptychError, InternalError, ShapeError
from diptych.generator import default_generator
from diptych.graph.node import Graph, Node, input_node, walk
from diptych.graph.record import GRAPH, recording
from diptych.graph.rewrite import rebuilt, specialise
from diptych.ops.elementwise import add, cast, divide
from diptych.ops.indexing import arange, gather
from diptych.runtime.memory import copied, element_strides
from diptych.static.capture import Captured, Compiled
from diptych.tensor import default_panel

Array = np.ndarray[Any, Any]
BATCH, ROWS = Dim.symbol("B"), Dim.symbol("R")
NEEDS_SIZE = object()  # instead of a step for any size, where it needs the number


def scan(step: Callable[..., Any], loader: Any) -> list[Array]:
    """One epoch of `step(images, labels)` over a DataLoader of arrays, in one native call.

    The batches, their order and the conversion of uint8 pixels are the loader's, so the bits are
    those of `for batch in loader: step(*batch)`. Returns each result of the step, stacked: a
    loss () becomes (steps,). A last batch of another size is one call more. Every step begins and
    ends without gradients.
    """
    if not isinstance(step, Compiled):
        raise DiptychError(
            "scan takes a compiled step", f"{step!r}", "dp.scan(dp.compile(step), ...)"
        )
    function, runs = step.function, step.scans
    dataset = getattr(loader, "dataset", None)
    if not all(hasattr(dataset, name) for name in ("arrays", "scale", "shift")):
        kind = type(loader).__name__
        given = f"a {kind}" if dataset is None else f"a {kind} of a {type(dataset).__name__}"
        raise DiptychError(
            "scan takes a DataLoader of arrays", given, "DataLoader(data.arrays(x, y), 16)"
        )
    arrays = loader.dataset.arrays()
    order = np.ascontiguousarray(loader.order(loader.epoch), np.int64)
    loader.epoch += 1
    whole, rest = divmod(len(order), loader.batch_size)
    results: list[list[Array]] = []
    rest = 0 if loader.drop_last else rest
    any_size = whole > 0 and rest >= 2  # one executable for the batches and the last one
    if whole:
        size = loader.batch_size
        results.append(_run(function, runs, loader, arrays, order, size, whole, any_size))
    if rest:
        results.append(_run(function, runs, loader, arrays, order[-rest:], rest, 1, any_size))
    return [_joined(parts) for parts in zip(*results, strict=True)]


def _joined(parts: Sequence[Array]) -> Array:
    """A result of all steps, the last batch's among them."""
    if len({p.shape[1:] for p in parts}) > 1:
        raise ShapeError(
            "a result of a scanned step has one shape in every step",
            f"{list(parts[0].shape[1:])}, and {list(parts[1].shape[1:])} in the last batch",
            "return a mean or a sum, or pass drop_last=True to the loader",
        )
    return np.concatenate(parts)


def _run(
    function: Callable[..., Any],
    runs: dict[Any, Any],
    loader: Any,
    arrays: Sequence[Array],
    order: Array,
    batch: int,
    steps: int,
    any_size: bool,
) -> list[Array]:
    dataset = loader.dataset
    types = tuple([(a.shape, a.dtype) for a in arrays])
    mode = default_panel().grad_enabled
    key = (types, float(dataset.scale), float(dataset.shift), mode)
    if any_size:
        made: Any = runs.get(key)
        if made is None or (made is not NEEDS_SIZE and not made.capture.valid()):
            try:
                made = runs[key] = Scanned(function, dataset, arrays, batch, ROWS, BATCH)
            except InternalError:
                raise
            except Exception:  # without symbols it works, or says what is wrong
                made = NEEDS_SIZE
        if made is not NEEDS_SIZE:
            return list(made.run(arrays, order, batch, steps))
    special = (*key, batch, len(order))
    found = runs.get(special)
    if found is None or not found.capture.valid():
        found = runs[special] = Scanned(function, dataset, arrays, batch, len(order), batch)
        if any_size:
            runs[key] = NEEDS_SIZE
    return found.run(arrays, order, batch, steps)


class Scanned:
    """A step captured with the batch made inside; `rows` and `size` of the batch are numbers, or
    symbols for an executable that takes any. `sample` rows are what the capture is shown."""

    def __init__(
        self,
        function: Callable[..., Any],
        dataset: Any,
        arrays: Sequence[Array],
        sample: int,
        rows: Dimension,
        size: Dimension,
    ) -> None:
        shown = [
            np.zeros((sample, *a.shape[1:]), b.dtype)
            for a, b in zip(arrays, dataset[:1], strict=True)
        ]
        symbolic = {(n, 0): "B" for n in range(len(shown))} if size is BATCH else {}
        self.capture = Captured(function, tuple(shown), {}, symbolic)
        self.size = size
        program = self.capture.program
        if any(grad is not None for _, grad in self.capture.kept):
            raise DiptychError(
                "a step that is scanned leaves no gradients behind",
                "parameters have .grad at its end",
                "call optimizer.zero_grad() at the end of the step",
            )
        self.updates = program.updates()
        roots = [*self.capture.results, *[new for _, _, new in self.updates]]
        before = {id(n): h for h, n in program.had_grad if n is not None}
        read = [before[id(n)] for n in walk(roots) if id(n) in before]
        if read:
            raise DiptychError(
                "a step that is scanned begins without gradients",
                f"{getattr(read[0], 'name', '') or read[0].type} has .grad, which the first step "
                "alone would add to",
                "call optimizer.zero_grad() before dp.scan",
            )
        self.start = input_node(TensorType((), i64), "start")
        self.order = input_node(TensorType((rows,), i64), "order")
        self.data = [input_node(TensorType(a.shape, as_dtype(a.dtype))) for a in arrays]
        made = self._batch(dataset, size)
        feeds = [f.node for f in program.feeds.values()]
        self.state = list(program.state.values())
        self.live = [(n, read) for n, read in program.live if id(n) not in before]
        inputs = [self.start, self.order, *self.data]
        inputs += [n for _, n in self.state] + [n for n, _ in self.live]
        new = rebuilt(roots, dict(zip(map(id, feeds), made, strict=True)))
        self.graph = Graph(tuple(inputs), tuple(new))
        self.executables: dict[Any, engine.LoopExecutable | engine.ReferenceLoop] = {}
        self.checked: set[tuple[int, ...]] = set()

    def _batch(self, dataset: Any, size: Dimension) -> list[Node]:
        """Rows of the data set at the positions order[start : start + batch]."""
        with recording(GRAPH):
            places = gather(self.order, add(arange(size), self.start))
            made = []
            for source in self.data:
                rows = gather(source, places)
                if source.dtype.name == "u8":
                    rows = divide(cast(rows, "f32"), float(dataset.scale))
                    rows = add(rows, float(dataset.shift))
                made.append(rows)
        return made

    def run(self, arrays: Sequence[Array], order: Array, batch: int, steps: int) -> list[Array]:
        """`steps` batches of so many rows, in this order."""
        panel = default_panel()
        values: list[Array] = [np.zeros((), np.int64), order, *arrays]
        first = len(values)
        for parameter, _ in self.state:
            values.append(panel.observe(parameter))
        place = {id(p): first + n for n, (p, _) in enumerate(self.state)}
        donated, results = {}, len(self.capture.results)
        for n, (parameter, _, _) in enumerate(self.updates):
            at = place[id(parameter)]
            values[at] = copied(values[at])
            donated[results + n] = at
        random = []
        for n, (node, read) in enumerate(self.live):
            values.append(np.array(read()))
            if node.type == TensorType((2,), i64):
                random.append(first + len(self.state) + n)
        strides = tuple(element_strides(v) for v in values)
        sizes = {"B": batch, "R": len(order)} if self.size is BATCH else {}
        reference = panel.device == "reference"
        if sizes and tuple(sizes.values()) not in self.checked:
            specialise(self.graph, sizes)  # which says where they do not fit
            self.checked.add(tuple(sizes.values()))
        key = (panel.device, strides, tuple(sizes.items()) if reference else ())
        found = self.executables.get(key)
        if found is None:
            graph = specialise(self.graph, sizes) if reference else self.graph
            if reference:
                found = engine.ReferenceLoop(graph, donated, 0, batch, random)
            else:
                order_of = dict(enumerate(strides))
                found = engine.LoopExecutable(graph, order_of, donated, 0, self.size, random, sizes)
            self.executables[key] = found
        stacked = found.at(sizes).run_steps(values, steps)
        self._after(values, place, len(random) * (steps - 1))
        return stacked

    def _after(self, values: list[Array], place: dict[int, int], streams: int) -> None:
        """Bind the new state, and take the streams that the loop used."""
        for parameter, _, _ in self.updates:
            fresh = input_node(parameter.type, parameter.name)
            fresh.value = values[place[id(parameter)]]
            parameter.bind(fresh, parameter.node.needs_grad)
        for handle, _ in self.capture.changed:
            default_panel().set_grad(handle, None)
        default_generator().skip(streams)
