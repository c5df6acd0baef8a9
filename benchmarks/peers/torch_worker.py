"""PyTorch: eager, and gradient with update compiled as one graph, one step or ten in a call."""

import math
import sys

import numpy as np
import torch
import torch._dynamo
import torch.nn.functional as F
import workloads as given
from torch import nn
from torch.func import grad_and_value
from workloads import Case


def network(widths):
    layers = []
    for n, (weight, bias) in enumerate(pairs(widths)):
        layer = nn.Linear(*weight.shape)
        layer.weight.data.copy_(weight.T)
        layer.bias.data.copy_(bias)
        layers += [nn.ReLU(), layer] if n else [layer]
    return nn.Sequential(*layers)


def pairs(widths):
    arrays = [torch.from_numpy(a) for a in given.weights(widths)]
    return list(zip(arrays[0::2], arrays[1::2]))


def eager(workload):
    images, labels = (list(torch.from_numpy(a)) for a in given.batches(workload))
    model = network(given.MLP[workload][1])
    kind, more = torch.optim.SGD, {}
    if workload.startswith("adam"):
        kind, more = torch.optim.Adam, {"fused": True}
    optimizer = kind(model.parameters(), lr=given.LEARNING_RATE, **more)

    def step(n):
        n %= len(images)
        loss = F.cross_entropy(model(images[n]), labels[n])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return Case(step, check=given.loss_after(step))


def loss_of(parameters, images, labels):
    hidden = images
    for weight, bias in zip(parameters[0:-2:2], parameters[1:-2:2]):
        hidden = F.relu(F.linear(hidden, weight, bias))
    return F.cross_entropy(F.linear(hidden, *parameters[-2:]), labels)


torch._dynamo.config.recompile_limit = 64  # compiles are counted by code, which workloads share
LOGS = [math.log(beta) for beta in given.BETAS]


def sgd(parameters, gradients):
    for parameter, gradient in zip(parameters, gradients):
        parameter.sub_(gradient, alpha=given.LEARNING_RATE)


def adam(parameters, gradients, m, v, t):
    one, two = given.BETAS
    t.add_(1)
    first, second = -torch.expm1(t * LOGS[0]), -torch.expm1(t * LOGS[1])  # 1 - beta^t
    rate, scale = given.LEARNING_RATE / first, 1 / torch.sqrt(second)
    for p, g, a, b in zip(parameters, gradients, m, v):
        a.mul_(one).add_(g, alpha=1 - one)
        b.mul_(two).addcmul_(g, g, value=1 - two)
        p.sub_(rate * a / (b.sqrt() * scale + given.EPSILON))


def compiled(steps):
    def build(workload):
        batch, widths = given.MLP[workload]
        images, labels = (
            torch.from_numpy(a[: len(a) // steps * steps]) for a in given.batches(workload)
        )
        images = list(images.reshape(-1, steps, batch, 784))
        labels = list(labels.reshape(-1, steps, batch))
        parameters = [t for w, b in pairs(widths) for t in (w.T.contiguous(), b.clone())]
        update, more = sgd, ()
        if workload.startswith("adam"):
            zeros = [[torch.zeros_like(p) for p in parameters] for _ in "mv"]
            update, more = adam, (*zeros, torch.zeros(()))

        def train(parameters, images, labels):
            for n in range(steps):
                gradients, loss = grad_and_value(loss_of)(parameters, images[n], labels[n])
                update(parameters, gradients, *more)
            return loss

        fast = torch.compile(train, fullgraph=True, dynamic=False, options={"cpp_wrapper": True})

        def call(n):
            n %= len(images)
            return fast(parameters, images[n], labels[n])

        for n in range(given.CHECKED // steps):
            loss = call(n)
        return Case(call, around=unguarded, steps=steps, check=float(loss))

    return build


def unguarded():
    """The fastest honest call: nothing is looked at again that cannot have changed here."""
    return torch.compiler.set_stance(skip_guard_eval_unsafe=True)


def matmul(workload):
    if workload == "awkward":
        return [product(*shape) for shape in given.AWKWARD]
    n = given.SQUARE[workload]
    return product((), n, n, n, "nn")


def product(lead, m, k, n, stored):
    a, b = (torch.from_numpy(x) for x in given.matrices(lead, m, k, n, stored))
    a, b = (x.mT if how == "t" else x for x, how in zip((a, b), stored))
    out = torch.empty((*lead, m, n))
    return Case(lambda _: torch.matmul(a, b, out=out))


def inference(form):
    def build(_):
        model = network(given.MLP["mlp16"][1]).eval()
        images = list(given.batches("null1")[0])
        if form == "traced":
            model = torch.jit.freeze(torch.jit.trace(model, torch.from_numpy(images[0])))

        def call(n):
            return model(torch.from_numpy(images[n % len(images)])).numpy()

        with torch.inference_mode():
            check = float(call(0).sum())
        return Case(call, around=torch.inference_mode, check=check)

    return build


CASES = {
    "eager": eager,
    "compile_step": compiled(1),
    "compile_10_steps": compiled(10),
    "matmul": matmul,
    "inference": inference("eager"),
    "inference_traced": inference("traced"),
}


if __name__ == "__main__":
    given.pin(int(sys.argv[1]))
    given.serve(CASES, {"torch": torch.__version__, "numpy": np.__version__}, torch.set_num_threads)
