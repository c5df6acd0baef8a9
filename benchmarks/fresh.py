"""What is timed in a process of its own: `python fresh.py NAME` does one of these and prints it.

`first_*` print the wall clock at the end of a first compiled step; the parent knows the start.
`job_*` train two epochs of MNIST at batch 16, reading and compiling included, imports not, and
print seconds and test accuracy. `import` prints how long diptych takes to import after numpy.
"""

import os
import sys
import time
from itertools import pairwise

WIDTHS, RATE = (784, 100, 100, 10), 0.001


def import_diptych():
    import numpy  # noqa: F401

    begin = time.perf_counter()
    import diptych  # noqa: F401

    return [time.perf_counter() - begin]


def import_numpy():
    begin = time.perf_counter()
    import numpy  # noqa: F401

    return [time.perf_counter() - begin]


def diptych_step():
    import diptych as dp
    import diptych.nn.functional as F
    from diptych import nn, optim

    dp.manual_seed(0)
    layers = []
    for ins, outs in pairwise(WIDTHS):
        layers += [nn.Linear(ins, outs), nn.ReLU()]
    model = nn.Sequential(*layers[:-1])
    for _, parameter in model.named_parameters():
        parameter.assign(start(parameter.shape[::-1]).T.copy())
    optimizer = optim.SGD(model.parameters(), lr=RATE)

    def step(images, labels):
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss

    return dp, model, step


def start(shape):
    """Xavier-uniform weights, biases of zeros."""
    import numpy as np

    if len(shape) == 1:
        return np.zeros(shape, np.float32)
    bound = (6 / sum(shape)) ** 0.5
    return np.random.default_rng(0).uniform(-bound, bound, shape).astype(np.float32)


def first_diptych():
    import numpy as np

    dp, _, step = diptych_step()
    loss = dp.compile(step)(np.ones((16, 784), np.float32), np.arange(16) % 10)
    assert float(loss) > 0
    return [time.time()]


def jax_train():
    import jax
    import jax.numpy as jnp

    def loss_of(parameters, images, labels):
        hidden = images
        for weight, bias in parameters[:-1]:
            hidden = jax.nn.relu(hidden @ weight + bias)
        logits = jax.nn.log_softmax(hidden @ parameters[-1][0] + parameters[-1][1])
        return -jnp.mean(jnp.take_along_axis(logits, labels[:, None], 1))

    def train(parameters, images, labels):
        loss, gradients = jax.value_and_grad(loss_of)(parameters, images, labels)
        return jax.tree.map(lambda p, g: p - RATE * g, parameters, gradients), loss

    pairs = pairwise(WIDTHS)
    return jax, train, [(start(shape), start(shape[1:])) for shape in pairs]


def first_jax():
    import numpy as np

    jax, train, parameters = jax_train()
    labels = (np.arange(16) % 10).astype(np.int32)
    _, loss = jax.jit(train)(parameters, np.ones((16, 784), np.float32), labels)
    assert float(loss) > 0
    return [time.time()]


def job_scan():
    from diptych.data import DataLoader

    begin = time.perf_counter()
    dp, model, step = diptych_step()
    train = diptych_mnist("train")
    loader, fast = DataLoader(train, 16, shuffle=True, seed=0), dp.compile(step)
    for _ in range(2):
        dp.scan(fast, loader)
    seconds = time.perf_counter() - begin
    return [seconds, diptych_accuracy(dp, model)]


def job_dynamic():
    from diptych.data import DataLoader

    begin = time.perf_counter()
    dp, model, step = diptych_step()
    loader = DataLoader(diptych_mnist("train"), 16, shuffle=True, seed=0)
    for _ in range(2):
        for images, labels in loader:
            loss = step(dp.tensor(images), dp.tensor(labels))
    assert float(loss) < 5
    seconds = time.perf_counter() - begin
    return [seconds, diptych_accuracy(dp, model)]


def diptych_mnist(split):
    from diptych.data import arrays, mnist

    rows = mnist(split, os.environ["DIPTYCH_DATA"])
    return arrays(rows.images, rows.labels, scale=127.5, shift=-1.0)


def diptych_accuracy(dp, model):
    test = diptych_mnist("test")
    images, labels = test[:]
    return float((model(dp.tensor(images)).numpy().argmax(1) == labels).mean())


def read(split):
    """Images f32 from -1 to 1 and labels i64, by the names of MNIST's files."""
    import gzip

    import numpy as np

    folder, parts = os.environ["DIPTYCH_DATA"], []
    for name, head in (("images-idx3", 16), ("labels-idx1", 8)):
        with gzip.open(os.path.join(folder, f"{split}-{name}-ubyte.gz")) as file:
            parts.append(np.frombuffer(file.read(), np.uint8, offset=head))
    images = parts[0].reshape(-1, 784).astype(np.float32) / np.float32(127.5) - np.float32(1)
    return images, parts[1].astype(np.int64)


def job_jax():
    import numpy as np

    jax, train, parameters = jax_train()
    import jax.numpy as jnp

    begin = time.perf_counter()
    images, labels = read("train")
    images, labels = jnp.asarray(images), jnp.asarray(labels.astype(np.int32))

    @jax.jit
    def epoch(parameters, images, labels, order):
        def body(parameters, rows):
            return train(parameters, images[rows], labels[rows])

        return jax.lax.scan(body, parameters, order)

    for n in range(2):
        order = jax.random.permutation(jax.random.key(n), len(images)).reshape(-1, 16)
        parameters, losses = epoch(parameters, images, labels, order)
    assert float(losses[-1]) < 5
    seconds = time.perf_counter() - begin
    x, y = read("t10k")
    for n, (weight, bias) in enumerate(parameters):
        x = np.asarray(x) @ np.asarray(weight) + np.asarray(bias)
        x = np.maximum(x, 0) if n < 2 else x
    return [seconds, float((x.argmax(1) == y).mean())]


def job_torch():
    import torch
    import torch._dynamo  # the optimizer would import it: seconds that are not the job's
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    begin = time.perf_counter()
    layers = []
    for ins, outs in pairwise(WIDTHS):
        layers += [nn.Linear(ins, outs), nn.ReLU()]
    model = nn.Sequential(*layers[:-1])
    for parameter in model.parameters():
        value = start(tuple(parameter.shape)[::-1])
        parameter.data.copy_(torch.from_numpy(value.T.copy()))
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    images, labels = (torch.from_numpy(a) for a in read("train"))
    loader = DataLoader(TensorDataset(images, labels), batch_size=16, shuffle=True)
    for _ in range(2):
        for x, y in loader:
            loss = nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert float(loss) < 5
    seconds = time.perf_counter() - begin
    x, y = (torch.from_numpy(a) for a in read("t10k"))
    with torch.no_grad():
        return [seconds, float((model(x).argmax(1) == y).double().mean())]


if __name__ == "__main__":
    print(*globals()[sys.argv[1]]())
