"""The digit network as a static graph, in the fluid API: `diptych fluid fluid_static.py`."""

import paddle
import paddle.fluid as fluid

PASSES = 2

image = fluid.layers.data(name="image", shape=[1, 28, 28], dtype="float32")
label = fluid.layers.data(name="label", shape=[1], dtype="int64")
hidden = fluid.layers.fc(input=image, size=100, act="relu")
hidden = fluid.layers.fc(input=hidden, size=100, act="relu")
predict = fluid.layers.fc(input=hidden, size=10, act="softmax")
cost = fluid.layers.mean(fluid.layers.cross_entropy(input=predict, label=label))
acc = fluid.layers.accuracy(input=predict, label=label)
test_program = fluid.default_main_program().clone(for_test=True)
fluid.optimizer.SGD(learning_rate=0.01).minimize(cost)

executor = fluid.Executor(fluid.CPUPlace())
executor.run(fluid.default_startup_program())
feeder = fluid.DataFeeder(feed_list=[image, label], place=executor.place)
train = paddle.batch(paddle.dataset.mnist.train(), batch_size=16)
test = paddle.batch(paddle.dataset.mnist.test(), batch_size=32)

for number in range(PASSES):
    for batch in train():
        (loss,) = executor.run(feed=feeder.feed(batch), fetch_list=[cost])
    shares = [executor.run(test_program, feeder.feed(b), [acc])[0][0] for b in test()]
    print(f"pass {number}: loss {loss[0]:.5f}, test accuracy {sum(shares) / len(shares):.5f}")

fluid.io.save_inference_model("digits.inference", ["image"], [predict], executor)
