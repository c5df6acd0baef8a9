"""The digit network as a dynamic graph, in the fluid API: `diptych fluid fluid_dynamic.py`."""

import numpy as np
import paddle
import paddle.fluid as fluid
from paddle.fluid.dygraph import Linear, to_variable

PASSES = 2


class Network(fluid.dygraph.Layer):
    def __init__(self):
        super().__init__()
        self.first = Linear(784, 100, act="relu")
        self.second = Linear(100, 100, act="relu")
        self.out = Linear(100, 10, act="softmax")

    def forward(self, x):
        return self.out(self.second(self.first(x)))


def arrays(batch):
    images = np.array([image for image, _ in batch])
    labels = np.array([label for _, label in batch], "int64").reshape(-1, 1)
    return to_variable(images), to_variable(labels)


with fluid.dygraph.guard():
    model = Network()
    optimizer = fluid.optimizer.SGD(0.01, parameter_list=model.parameters())
    train = paddle.batch(paddle.dataset.mnist.train(), batch_size=16)
    test = paddle.batch(paddle.dataset.mnist.test(), batch_size=32)
    for number in range(PASSES):
        for batch in train():
            images, labels = arrays(batch)
            loss = fluid.layers.mean(fluid.layers.cross_entropy(model(images), labels))
            loss.backward()
            optimizer.minimize(loss)
            model.clear_gradients()
        shares = []
        for batch in test():
            images, labels = arrays(batch)
            shares.append(fluid.layers.accuracy(model(images), labels).numpy()[0])
        share = sum(shares) / len(shares)
        print(f"pass {number}: loss {loss.numpy()[0]:.5f}, test accuracy {share:.5f}")
    fluid.save_dygraph(model.state_dict(), "digits")
