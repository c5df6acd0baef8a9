"""Which values of a graph get memory; the others are computed inside the loops of their users."""

from __future__ import annotations

from collections.abc import Mapping

from diptych.compiler.sizes import NO_HINTS, typical
from diptych.graph.node import Constant, Graph, Input, Node, Operator
from diptych.ops.contract import Contract
from diptych.ops.elementwise import Divide, Elementwise, FloorDivide, Remainder
from diptych.ops.functions import Function, Pow
from diptych.ops.indexing import Gather, ScatterAdd
from diptych.ops.reduce import Reduction
from diptych.ops.shape import Broadcast, Reshape, Transpose

FEW = 1 << 20  # bytes of rows that stay in the caches while products go over them
FEW_SUMS = 8  # results of a fold below which what it folds is computed one by one
DEPTH = 40  # longest chain of operators in one expression


class Kind:
    """What fusion asks of a class of operators; asked of every node, it is worth remembering."""

    def __init__(self, op: type[Operator]) -> None:
        self.leaf = issubclass(op, Input | Constant)
        self.fold = issubclass(op, Contract | Reduction | ScatterAdd)
        self.heavy = (  # worth computing only once
            self.fold
            or issubclass(op, Function | Pow | Divide | FloorDivide | Remainder)
            or op.name in ("random_bits", "uniform", "normal")
        )
        self.contract = issubclass(op, Contract)
        self.spreads = issubclass(op, Contract | ScatterAdd | Gather)
        self.reduction = issubclass(op, Reduction)
        self.reshape = issubclass(op, Reshape)
        self.view = issubclass(op, Transpose | Broadcast)
        self.elementwise = issubclass(op, Elementwise)
        self.gather = issubclass(op, Gather)
        self.checks = op.positions is not Operator.positions


class _Kinds(dict[type[Operator], Kind]):
    def __missing__(self, op: type[Operator]) -> Kind:
        return self.setdefault(op, Kind(op))


KINDS = _Kinds()


def kind(node: Node) -> Kind:
    """Of the node's operator; loops over all nodes ask KINDS, which is a call less."""
    return KINDS[type(node.op)]


def only_ones_move(node: Node) -> bool:
    """A reshape that adds or drops axes of size 1."""
    have = [d for d in node.inputs[0].type.shape if d != 1]
    return have == [d for d in node.type.shape if d != 1]


def _moves_ones(node: Node) -> bool:
    return kind(node).reshape and only_ones_move(node)


def _is_view(node: Node) -> bool:
    """Whether loads of what a node is given, at other indices, are loads of the node."""
    return kind(node).view or _moves_ones(node)


def _keeps_axes(node: Node) -> bool:
    """Whether a node of the size of what it is given has the same axes, in some order, beside axes
    of size 1."""
    return kind(node).elementwise or isinstance(node.op, Transpose) or _moves_ones(node)


def is_alias(node: Node) -> bool:
    """Whether a node is the memory of what it is given, under another shape."""
    return kind(node).reshape and not only_ones_move(node)


class Materialise:
    """Which nodes get memory of their own."""

    def __init__(self, graph: Graph, hints: Mapping[str, int] = NO_HINTS) -> None:
        self.nodes = graph.nodes
        self.users: dict[Node, list[Node]] = {n: [] for n in self.nodes}
        for node in self.nodes:
            for given in node.inputs:
                self.users[given].append(node)
        self.chosen = set(graph.outputs)
        self.repeated: set[Node] = set()  # inlined where one element is computed many times
        self.feeds_fold: set[Node] = set()
        self.feeds_few: set[Node] = set()  # a fold with too few results for a vector
        self.sides: set[Node] = set()  # views that contractions read, one over the other
        self.folds: dict[Node, Node] = {}  # of a chosen node the fold computed in its loops
        self.hints = hints
        for node in reversed(self.nodes):
            own = KINDS[type(node.op)]
            if not own.leaf:
                self._decide(node, own)
        self._limit_depth()

    def _decide(self, node: Node, own: Kind) -> None:
        users, chosen = self.users[node], self.chosen
        repeated = feeds = few = False
        for user in users:
            its, inlined = KINDS[type(user.op)], user not in chosen
            spreads = its.spreads or (not its.reduction and user.type.size != node.type.size)
            repeated |= spreads or (inlined and user in self.repeated)
            feeds |= its.fold or (inlined and user in self.feeds_fold)
            few |= its.reduction and typical(user.type.size, self.hints) < FEW_SUMS
            few |= inlined and user in self.feeds_few
        if (
            (own.heavy and (len(users) > 1 or repeated or few))
            or (own.fold and (feeds or not all(self._same_shape(u, node) for u in users)))
            or any(self._needs_memory(user, node) for user in users)
            or (own.fold and node not in chosen and self._needs_own_kernel(node, own))
            or (len(users) > 1 and (self._weight(node) > 6 or self._holds_heavy(node)))
        ):
            chosen.add(node)
            return
        if _is_view(node) and any(KINDS[type(u.op)].contract or u in self.sides for u in users):
            self.sides.add(node)
        if repeated:
            self.repeated.add(node)
        if feeds:
            self.feeds_fold.add(node)
        if few:
            self.feeds_few.add(node)

    def path(self, node: Node) -> list[Node]:
        """From a node to the node with memory in whose kernel it is computed."""
        path = [node]
        while path[-1] not in self.chosen:
            (user,) = self.users[path[-1]]
            path.append(user)
        return path

    def _needs_own_kernel(self, node: Node, own: Kind) -> bool:
        """A contraction is the only fold of its kernel, which goes over the contraction's own axes:
        tiles are for these, and for one fold."""
        (user,) = self.users[node]
        path = self.path(user)
        if own.contract and not all(_keeps_axes(n) for n in path):
            return True
        other = self.folds.setdefault(path[-1], node)
        return other is not node and (own.contract or kind(other).contract)

    def _same_shape(self, user: Node, node: Node) -> bool:
        if kind(user).reshape:
            return only_ones_move(user) and user not in self.repeated
        return kind(user).elementwise and user.type.shape == node.type.shape

    def _needs_memory(self, user: Node, node: Node) -> bool:
        its = kind(user)
        if is_alias(user):
            return True
        if its.contract or user in self.sides:
            return not _is_view(node) and not self._read_by_rows(node)
        if not its.gather:
            return False
        return user.inputs[0] is node or (user not in self.chosen and self._read_by_rows(user))

    def _read_by_rows(self, node: Node) -> bool:
        """Whether a node is rows that products can read where they lie: a few, whole, picked by a
        list of positions, and given to nothing but products."""
        if not kind(node).gather or node.type.rank < 2 or node.inputs[1].type.rank != 1:
            return False
        size = typical(node.type.size, self.hints) * node.type.dtype.bytes
        return size <= FEW and node not in self.chosen and self._only_contracted(node)

    def _only_contracted(self, node: Node) -> bool:
        """Whether only contractions read it, as it is or transposed."""
        stack = [node]
        while stack:
            for user in self.users[stack.pop()]:
                if isinstance(user.op, Transpose):
                    stack.append(user)
                elif not kind(user).contract:
                    return False
        return True

    def _weight(self, node: Node) -> int:
        """Operators that would be computed again with this one."""
        count, stack = 0, [node]
        while stack and count <= 8:
            n = stack.pop()
            if n not in self.chosen and not kind(n).leaf:
                count += 1
                stack.extend(n.inputs)
        return count

    def _holds_heavy(self, node: Node) -> bool:
        """Whether something heavy would be computed inside the node, and so with each user."""
        seen: set[Node] = set()
        stack = list(node.inputs)
        while stack:
            n = stack.pop()
            if n in seen or n in self.chosen or kind(n).leaf:
                continue
            if kind(n).heavy:
                return True
            seen.add(n)
            stack.extend(n.inputs)
        return False

    def _limit_depth(self) -> None:
        depth: dict[Node, int] = {}
        for node in self.nodes:
            deepest = max([depth[i] for i in node.inputs], default=0)
            own = 0 if KINDS[type(node.op)].leaf else 1 + deepest
            if own > DEPTH:
                self.chosen.add(node)
            depth[node] = 0 if node in self.chosen else own
