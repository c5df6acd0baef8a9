"""TensorFlow: inference of the network by its interpreter for small models, tflite."""

import os
import sys

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import numpy as np
import tensorflow as tf
import workloads as given
from workloads import Case

THREADS = int(sys.argv[1])


def inference(_):
    arrays = [tf.constant(a) for a in given.weights(given.MLP["mlp16"][1])]

    @tf.function(input_signature=[tf.TensorSpec([1, 784], tf.float32)])
    def model(x):
        for weight, bias in zip(arrays[0:-2:2], arrays[1:-2:2]):
            x = tf.nn.relu(x @ weight + bias)
        return x @ arrays[-2] + arrays[-1]

    converter = tf.lite.TFLiteConverter.from_concrete_functions([model.get_concrete_function()])
    interpreter = tf.lite.Interpreter(model_content=converter.convert(), num_threads=THREADS)
    interpreter.allocate_tensors()
    start = interpreter.get_input_details()[0]["index"]
    end = interpreter.get_output_details()[0]["index"]
    images = list(given.batches("null1")[0])

    def call(n):
        interpreter.set_tensor(start, images[n % len(images)])
        interpreter.invoke()
        return interpreter.get_tensor(end)

    return Case(call, check=float(call(0).sum()))


if __name__ == "__main__":
    given.pin(THREADS)
    versions = {"tensorflow": tf.__version__, "numpy": np.__version__}
    given.serve({"inference": inference}, versions, lambda n: None)
