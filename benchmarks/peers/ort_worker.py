"""onnxruntime: inference of the network from an ONNX model built here."""

import sys

import numpy as np
import onnx
import onnxruntime
import workloads as given
from onnx import TensorProto, helper, numpy_helper
from workloads import Case

THREADS = int(sys.argv[1])


def model(widths):
    arrays, nodes, last = given.weights(widths), [], "x"
    stored = [numpy_helper.from_array(a, f"p{n}") for n, a in enumerate(arrays)]
    for n in range(0, len(arrays), 2):
        out = f"y{n}"
        nodes.append(helper.make_node("Gemm", [last, f"p{n}", f"p{n + 1}"], [out]))
        if n + 2 < len(arrays):
            nodes.append(helper.make_node("Relu", [out], [f"h{n}"]))
            out = f"h{n}"
        last = out
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, widths[0]])
    y = helper.make_tensor_value_info(last, TensorProto.FLOAT, [1, widths[-1]])
    graph = helper.make_graph(nodes, "mlp", [x], [y], stored)
    opset = helper.make_opsetid("", 17)
    return helper.make_model(graph, opset_imports=[opset], ir_version=9).SerializeToString()


def inference(_):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(
        model(given.MLP["mlp16"][1]), options, providers=["CPUExecutionProvider"]
    )
    images = list(given.batches("null1")[0])

    def call(n):
        return session.run(None, {"x": images[n % len(images)]})[0]

    return Case(call, check=float(call(0).sum()))


if __name__ == "__main__":
    given.pin(THREADS)
    versions = {
        "onnxruntime": onnxruntime.__version__,
        "onnx": onnx.__version__,
        "numpy": np.__version__,
    }
    given.serve({"inference": inference}, versions, lambda n: None)
