"""The small network that paddle.fluid 1.8.5 was run on, in both modes."""

import json
from pathlib import Path

import numpy as np

from diptych import fluid
from diptych.fluid import dygraph

GOLDEN = Path(__file__).parent / "golden" / "fluid"
FOUND = json.loads((GOLDEN / "losses.json").read_text())
NAMES = ["sgd_0.001", "sgd_0.1", "momentum_0.01_0.9", "nesterov_0.01_0.9", "adam_0.001"]
STEPS, BATCH, SEED = 40, 8, FOUND["seed"]


def batches():
    """As scripts/make_fluid_golden.py draws them."""
    state = 12345
    for _ in range(STEPS):
        numbers = []
        for _ in range(BATCH * 17):
            state = 48271 * state % 2147483647
            numbers.append(state)
        table = np.array(numbers).reshape(BATCH, 17)
        images = (table[:, :16] % 255).astype("float32") / np.float32(127) - np.float32(1)
        labels = (table[:, :16].sum(1) // 7 + table[:, 16] % 2) % 3
        yield images.reshape(BATCH, 1, 4, 4), labels.astype("int64")[:, None]


def optimizer(name, **more):
    kind, *numbers = name.split("_")
    numbers = [float(n) for n in numbers]
    if kind == "sgd":
        return fluid.optimizer.SGDOptimizer(*numbers, **more)
    if kind == "adam":
        return fluid.optimizer.Adam(*numbers, **more)
    return fluid.optimizer.Momentum(*numbers, use_nesterov=kind == "nesterov", **more)


def network():
    image = fluid.layers.data(name="image", shape=[1, 4, 4], dtype="float32")
    label = fluid.layers.data(name="label", shape=[1], dtype="int64")
    hidden = fluid.layers.fc(input=image, size=6, act="relu")
    predict = fluid.layers.fc(input=hidden, size=3, act="softmax")
    cost = fluid.layers.mean(fluid.layers.cross_entropy(input=predict, label=label))
    return predict, cost, fluid.layers.accuracy(input=predict, label=label)


def scope_values():
    names = ["fc_0.w_0", "fc_0.b_0", "fc_1.w_0", "fc_1.b_0"]
    return [np.array(fluid.global_scope().find_var(n).get_tensor()).tobytes() for n in names]


def train_static(name):
    fluid.default_startup_program().random_seed = SEED
    _, cost, acc = network()
    optimizer(name).minimize(cost)
    executor = fluid.Executor(fluid.CPUPlace())
    assert executor.run(fluid.default_startup_program()) == []
    start, steps = scope_values(), []
    for x, y in batches():
        c, a, g = executor.run(
            feed={"image": x, "label": y}, fetch_list=[cost, acc.name, "fc_1.b_0@GRAD"]
        )
        assert c.shape == a.shape == (1,) and c.dtype == np.float32
        steps.append([float(c[0]), float(a[0]), g.tolist()])
    return start, steps, scope_values()


class Network(dygraph.Layer):
    def __init__(self):
        super().__init__()
        self.hidden = dygraph.Linear(16, 6, act="relu")
        self.out = dygraph.Linear(6, 3, act="softmax")

    def forward(self, x):
        return self.out(self.hidden(fluid.layers.reshape(x, [x.shape[0], -1])))


def train_dynamic(name):
    with fluid.dygraph.guard():
        fluid.default_main_program().random_seed = SEED
        model, steps = Network(), []
        update = optimizer(name, parameter_list=model.parameters())
        start = [p.numpy().tobytes() for p in model.parameters()]
        for x, y in batches():
            label = dygraph.to_variable(y)
            predict = model(dygraph.to_variable(x))
            cost = fluid.layers.mean(fluid.layers.cross_entropy(predict, label))
            acc = fluid.layers.accuracy(predict, label)
            cost.backward()
            gradient = model.out.bias.gradient().tolist()
            steps.append([float(cost.numpy()[0]), float(acc.numpy()[0]), gradient])
            update.minimize(cost)
            model.clear_gradients()
        return start, steps, [p.numpy().tobytes() for p in model.parameters()]
