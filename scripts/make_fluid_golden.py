"""Makes tests/golden/fluid with the real PaddlePaddle 1.8.5 (Python 3.7):

    python3.7 scripts/make_fluid_golden.py tests/golden/fluid

Losses step by step for every optimizer in both modes, an inference model in both layouts, and
weights saved from dygraph. The data are drawn by a formula that the tests repeat.
"""

import json
import os
import sys

import numpy as np
import paddle.fluid as fluid
from paddle.fluid.proto.framework_pb2 import ProgramDesc

SEED, STEPS, BATCH = 90, 40, 8


def batches():
    """Images (8, 1, 4, 4) f32 and labels (8, 1) i64, from the minimal standard generator."""
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


def optimizers(**more):
    return {
        "sgd_0.001": fluid.optimizer.SGD(0.001, **more),
        "sgd_0.1": fluid.optimizer.SGD(0.1, **more),
        "momentum_0.01_0.9": fluid.optimizer.Momentum(0.01, 0.9, **more),
        "nesterov_0.01_0.9": fluid.optimizer.Momentum(0.01, 0.9, use_nesterov=True, **more),
        "adam_0.001": fluid.optimizer.Adam(0.001, **more),
    }


def static(name, folder=None):
    main, startup = fluid.Program(), fluid.Program()
    startup.random_seed = SEED
    with fluid.program_guard(main, startup), fluid.unique_name.guard():
        image = fluid.layers.data(name="image", shape=[1, 4, 4], dtype="float32")
        label = fluid.layers.data(name="label", shape=[1], dtype="int64")
        hidden = fluid.layers.fc(input=image, size=6, act="relu")
        predict = fluid.layers.fc(input=hidden, size=3, act="softmax")
        cost = fluid.layers.mean(fluid.layers.cross_entropy(input=predict, label=label))
        acc = fluid.layers.accuracy(input=predict, label=label)
        optimizers()[name].minimize(cost)
        exe = fluid.Executor(fluid.CPUPlace())
        exe.run(startup)
        scope = fluid.global_scope()
        names = ["fc_0.w_0", "fc_0.b_0", "fc_1.w_0", "fc_1.b_0"]
        start = {n: np.array(scope.find_var(n).get_tensor()).tobytes().hex() for n in names}
        steps = []
        for x, y in batches():
            c, a, g = exe.run(main, {"image": x, "label": y}, [cost, acc, "fc_1.b_0@GRAD"])
            steps.append([float(c[0]), float(a[0]), [float(v) for v in g]])
        if folder:
            for where, more in (("apart", {}), ("together", {"params_filename": "weights"})):
                path = os.path.join(folder, where)
                fluid.io.save_inference_model(path, ["image"], [predict], exe, main, **more)
            program, _, fetch = fluid.io.load_inference_model(path, exe, params_filename="weights")
            (out,) = exe.run(program, {"image": x}, fetch)
            np.save(os.path.join(folder, "output.npy"), out)
            for where in ("apart", "together"):
                without_paths(os.path.join(folder, where, "__model__"))
    return {"start": start, "steps": steps}


def without_paths(path):
    """Drop the call stacks, which name folders of the machine, from a model file."""
    program = ProgramDesc()
    with open(path, "rb") as file:
        program.ParseFromString(file.read())
    for block in program.blocks:
        for operation in block.ops:
            kept = [a for a in operation.attrs if a.name != "op_callstack"]
            del operation.attrs[:]
            operation.attrs.extend(kept)
    with open(path, "wb") as file:
        file.write(program.SerializeToString())


class Network(fluid.dygraph.Layer):
    def __init__(self):
        super().__init__()
        self.hidden = fluid.dygraph.Linear(16, 6, act="relu")
        self.out = fluid.dygraph.Linear(6, 3, act="softmax")

    def forward(self, x):
        return self.out(self.hidden(fluid.layers.reshape(x, [x.shape[0], -1])))


def dynamic(name, folder=None):
    with fluid.dygraph.guard():
        fluid.default_main_program().random_seed = SEED
        model = Network()
        optimizer = optimizers(parameter_list=model.parameters())[name]
        steps = []
        for x, y in batches():
            label = fluid.dygraph.to_variable(y)
            predict = model(fluid.dygraph.to_variable(x))
            cost = fluid.layers.mean(fluid.layers.cross_entropy(predict, label))
            acc = fluid.layers.accuracy(predict, label)
            cost.backward()
            gradient = [float(v) for v in model.out.bias.gradient()]
            steps.append([float(cost.numpy()[0]), float(acc.numpy()[0]), gradient])
            optimizer.minimize(cost)
            model.clear_gradients()
        if folder:
            fluid.save_dygraph(model.state_dict(), os.path.join(folder, "network"))
            arrays = {n: v.numpy() for n, v in model.state_dict().items()}
            np.savez(os.path.join(folder, "network.npz"), **arrays)
    return {"steps": steps}


if __name__ == "__main__":
    folder = sys.argv[1]
    found = {"paddle": "1.8.5", "seed": SEED}
    with fluid.dygraph.guard():
        names = list(optimizers(parameter_list=[]))
    for name in names:
        found["static_" + name] = static(name, folder if name == "sgd_0.1" else None)
        found["dynamic_" + name] = dynamic(name, folder if name == "sgd_0.1" else None)
    with open(os.path.join(folder, "losses.json"), "w") as file:
        json.dump(found, file)
