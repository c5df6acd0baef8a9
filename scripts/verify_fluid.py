"""Holds the fluid API to the recorded losses of PaddlePaddle 1.8.5 on the real MNIST.

    python scripts/verify_fluid.py RECORDED.json MNIST_FOLDER

RECORDED.json maps static_sgd_0.1, dygraph_adam_0.001, ... to losses and accuracies of the
article's network, batches of 16 in file order, random_seed as it says. Every optimizer in it is
run in both modes: losses within 1e-5 at every step, accuracies equal, and both modes in the same
bits.

At a rate of 0.1 the run is chaotic: 1.8.5 itself, run again on another machine, departs from its
own record by more than 1e-5 at step 60 and by more than 1 at step 100. There the limit holds for
60 steps, and what comes after is shown.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np

from diptych import fluid
from diptych.fluid import dataset, dygraph, framework

LIMIT = 1e-5
REPRODUCIBLE = {"sgd_0.1": 60}  # steps after which 1.8.5 does not reproduce itself


def optimizer(name, **more):
    kind, *numbers = name.split("_")
    make = {"sgd": fluid.optimizer.SGD, "adam": fluid.optimizer.Adam,
            "momentum": fluid.optimizer.Momentum}[kind]  # fmt: skip
    return make(*map(float, numbers), **more)


def batches(reader, size, count):
    made = dataset.batch(reader, size)()
    for _ in range(count):
        rows = next(made)
        images = np.array([r[0] for r in rows]).reshape(-1, 1, 28, 28)
        yield images, np.array([[r[1]] for r in rows], np.int64)


def static(name, seed, train, test):
    """Losses, then those of the clone for tests, then the bits of the weights."""
    framework.STATE.main, framework.STATE.startup = framework.Program(), framework.Program()
    framework.STATE.names = framework.UniqueNames()
    fluid.default_startup_program().random_seed = seed
    image = fluid.layers.data(name="image", shape=[1, 28, 28], dtype="float32")
    label = fluid.layers.data(name="label", shape=[1], dtype="int64")
    hidden = fluid.layers.fc(fluid.layers.fc(image, 100, act="relu"), 100, act="relu")
    predict = fluid.layers.fc(hidden, 10, act="softmax")
    cost = fluid.layers.mean(fluid.layers.cross_entropy(predict, label))
    acc = fluid.layers.accuracy(predict, label)
    testing = fluid.default_main_program().clone(for_test=True)
    optimizer(name).minimize(cost)
    executor = fluid.Executor(fluid.CPUPlace())
    executor.run(fluid.default_startup_program())
    steps = [
        [executor.run(program, {"image": x, "label": y}, [cost, acc]) for x, y in data]
        for program, data in ((fluid.default_main_program(), train), (testing, test))
    ]
    names = [f"fc_{k}.{p}_0" for k in range(3) for p in "wb"]
    weights = [np.array(fluid.global_scope().find_var(n).get_tensor()).tobytes() for n in names]
    return *([[float(c[0]), float(a[0])] for c, a in rows] for rows in steps), weights


class Network(dygraph.Layer):
    def __init__(self):
        super().__init__()
        self.hidden1 = dygraph.Linear(784, 100, act="relu")
        self.hidden2 = dygraph.Linear(100, 100, act="relu")
        self.fc = dygraph.Linear(100, 10, act="softmax")

    def forward(self, x):
        x = fluid.layers.reshape(x, [x.shape[0], -1])
        return self.fc(self.hidden2(self.hidden1(x)))


def dynamic(name, seed, train):
    """Losses, and the bits of the weights."""
    with fluid.dygraph.guard():
        fluid.default_main_program().random_seed = seed
        model, steps = Network(), []
        model.train()
        update = optimizer(name, parameter_list=model.parameters())
        for x, y in train:
            label = dygraph.to_variable(y)
            predict = model(dygraph.to_variable(x))
            cost = fluid.layers.mean(fluid.layers.cross_entropy(predict, label))
            acc = fluid.layers.accuracy(predict, label)
            cost.backward()
            update.minimize(cost)
            model.clear_gradients()
            steps.append([float(cost.numpy()[0]), float(acc.numpy()[0])])
        return steps, [p.numpy().tobytes() for p in model.parameters()]


def compare(what, found, recorded, steps):
    """The greatest difference of losses over the first `steps`; accuracies are equal."""
    assert len(found) == len(recorded) and [a for _, a in found] == [a for _, a in recorded], what
    differences = [abs(c - r) for (c, _), (r, _) in zip(found, recorded, strict=True)]
    worst = max(differences[:steps], default=0.0)
    assert worst < LIMIT, f"{what}: {worst}"
    after = f", then {max(differences[steps:]):.1e}" if differences[steps:] else ""
    print(f"{what}: {len(found)} accuracies equal; losses of {min(steps, len(found))} steps differ")
    print(f"  by at most {worst:.1e}{after}")


def main():
    recorded = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    os.environ["DIPTYCH_DATA"] = sys.argv[2]
    runs = {k: v for k, v in recorded.items() if isinstance(v, dict)}
    names = sorted({k.partition("_")[2] for k in runs})
    train = list(batches(dataset.train(), 16, max(len(r["train"]) for r in runs.values())))
    test = list(batches(dataset.test(), 32, max(len(r.get("test", ())) for r in runs.values())))
    for name in names:
        first, tested, weights = static(name, recorded["seed"], train, test)
        second, same = dynamic(name, recorded["seed"], train)
        assert (first, weights) == (second, same), f"{name}: the modes differ"
        reference, steps = runs[f"static_{name}"], REPRODUCIBLE.get(name, len(train))
        compare(f"static {name}", first, reference["train"], steps)
        left = len(test) if steps == len(train) else 0
        compare(f"static {name}, test program", tested, reference["test"], left)
        compare(f"dynamic {name}", second, runs.get(f"dygraph_{name}", reference)["train"], steps)
        print(f"{name}: both modes end in the same bits")


if __name__ == "__main__":
    main()
