"""Names that PyTorch has and diptych has otherwise, each with what to write instead."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from diptych.errors import MissingNameError

MANY = 40  # names, more than an error lists


class Absent:
    """An attribute that is not there, so that `hasattr` says no, but whose error has a cure."""

    def __init__(self, cure: str) -> None:
        self.cure = cure

    def __set_name__(self, owner: type, name: str) -> None:
        self.place, self.name = owner.__doc__ or "", name

    def __get__(self, instance: Any, owner: type) -> Any:
        raise missing(self.place, self.name, self.cure)


def missing(place: str, name: str, cure: str) -> MissingNameError:
    """The error of a name that PyTorch has."""
    return MissingNameError(f"{place} has no attribute {name!r}", "PyTorch's name for it", cure)


def missing_from(module: str, name: str, there: Sequence[str], also: str = "") -> AttributeError:
    """The error of a name that a module does not have: what to write, or what there is."""
    if name.startswith("_"):  # whoever asks for these does not read the answer
        return AttributeError(f"module {module!r} has no attribute {name!r}")
    if name in MODULES.get(module, {}):
        return missing(module, name, MODULES[module][name])
    from difflib import get_close_matches

    close = get_close_matches(name, there, 3)
    listed = close or (there if len(there) < MANY else [f"dir({module}) lists what there is"])
    rule, cure = f"{module} has no attribute {name!r}", ", ".join(listed) + also
    return MissingNameError(rule, f"{module}.{name}", cure)


_FIXED = "leave it out: there is one device at a time, dp.use_device"
_NEW = "write x = x + y, or p.assign(p + y) of a Parameter: the value of a tensor does not change"
_TYPE = "layer.weight = dp.Parameter(layer.weight.astype('f64')): a parameter keeps its dtype"


class OfTensor:
    """a tensor"""

    __slots__ = ()
    view = Absent("x.reshape(...)")
    permute = Absent("x.transpose(0, 2, 1)")
    to = Absent("x.astype('f32') for a dtype; " + _FIXED)
    cpu, cuda = Absent(_FIXED), Absent(_FIXED)
    double = Absent("x.astype('f64')")
    float = Absent("x.astype('f32')")
    long = Absent("x.astype('i64')")
    int = Absent("x.astype('i32')")
    bool = Absent("x.astype('bool')")
    data = Absent("x.detach() to read, p.assign(...) to set")
    dim = Absent("x.ndim")
    numel = Absent("x.size")
    clone = Absent("x.detach(), or x itself: the value of a tensor does not change")
    contiguous = Absent("leave it out: how a tensor lies in memory is not seen")
    unsqueeze = Absent("dp.expand_dims(x, axis)")
    squeeze = Absent("dp.squeeze(x, axis)")
    expand = Absent("dp.broadcast_to(x, shape)")
    matmul, mm = Absent("x @ y"), Absent("x @ y")
    pow = Absent("x ** y")
    softmax = Absent("F.softmax(x, axis=...)")
    relu = Absent("F.relu(x)")
    type_as = Absent("x.astype(y.dtype)")
    add_, sub_, mul_, div_ = Absent(_NEW), Absent(_NEW), Absent(_NEW), Absent(_NEW)
    zero_, fill_, copy_ = Absent(_NEW), Absent(_NEW), Absent(_NEW)


class OfModule:
    """a module"""

    zero_grad = Absent("optimizer.zero_grad()")
    to, cpu, cuda = Absent(_FIXED), Absent(_FIXED), Absent(_FIXED)
    float, double = Absent(_TYPE), Absent(_TYPE)
    register_buffer = Absent("self.name = dp.Parameter(value, trainable=False)")
    register_parameter = Absent("self.name = dp.Parameter(value)")
    add_module = Absent("self.name = module, or a list of modules")
    requires_grad_ = Absent("layer.weight = dp.Parameter(layer.weight, trainable=False) freezes it")


class OfOptimizer:
    """an optimizer"""

    param_groups = Absent("optimizer.lr and optimizer.parameters; of two groups, two optimizers")
    add_param_group = Absent("an optimizer of its own for them")


MODULES = {
    "diptych": {
        "float32": "dp.f32", "float64": "dp.f64", "int32": "dp.i32", "int64": "dp.i64",
        "uint8": "dp.u8", "bool": "dp.bool_", "float": "dp.f32", "double": "dp.f64",
        "long": "dp.i64", "zeros": "dp.tensor(np.zeros(shape, np.float32))",
        "ones": "dp.tensor(np.ones(shape, np.float32))",
        "full": "dp.tensor(np.full(shape, value, np.float32))",
        "eye": "dp.tensor(np.eye(n, dtype=np.float32))",
        "zeros_like": "dp.tensor(np.zeros(x.shape, np.float32))",
        "linspace": "dp.tensor(np.linspace(low, high, n, dtype=np.float32))",
        "rand": "dp.uniform(shape)", "randn": "dp.normal(shape)", "randperm": "dp.permutation(n)",
        "from_numpy": "dp.tensor(array), which copies", "as_tensor": "dp.tensor(value)",
        "cat": "dp.concat(tensors, axis)", "mm": "a @ b", "bmm": "a @ b",
        "einsum": "dp.contract(a, b, 'ij,jk->ik')", "unsqueeze": "dp.expand_dims(x, axis)",
        "permute": "dp.transpose(x, order)", "relu": "F.relu(x)", "softmax": "F.softmax(x)",
        "inference_mode": "dp.no_grad()", "set_num_threads": "dp.set_threads(n)",
        "device": "dp.use_device('cpu')", "cuda": _FIXED,
        "get_rng_state": "dp.default_generator().state_dict()",
        "set_rng_state": "dp.default_generator().load_state_dict(state)",
        "autograd": "dp.grad(f), or dp.partials(y, [x])",
    },
    "diptych.nn": {
        "Parameter": "dp.Parameter(value)",
        "CrossEntropyLoss": "F.cross_entropy(scores, labels)",
        "NLLLoss": "F.nll_loss(x, labels)", "MSELoss": "F.mse_loss(x, target)",
        "L1Loss": "F.l1_loss(x, target)", "BCELoss": "F.binary_cross_entropy(p, target)",
        "BCEWithLogitsLoss": "F.binary_cross_entropy_with_logits(x, target)",
        "utils": "optim.clip_grad_norm_, optim.clip_grad_value_",
    },
    "diptych.optim": {"lr_scheduler": "optim.StepLR(optimizer, every=...), optim.CosineLR"},
    "diptych.data": {
        "TensorDataset": "data.arrays(images, labels)",
        "Dataset": "no base class: an object with __len__ and __getitem__",
    },
}  # fmt: skip
ARGUMENTS = {
    "dim": "write axis= for dim=", "keepdim": "write keepdims=",
    "reduction": "a loss is the mean over the batch; write a sum with F.log_softmax and .sum()",
    "label_smoothing": "leave it out: it is not there yet",
    "inplace": "leave it out: the value of a tensor does not change",
}  # fmt: skip
