"""JAX: a jitted step, and a scan over the epoch, which is its fastest form."""

import math
import sys

import workloads as given

given.pin(int(sys.argv[1]))  # before XLA counts the processors

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from workloads import Case  # noqa: E402


def loss_of(parameters, images, labels):
    hidden = images
    for weight, bias in zip(parameters[0:-2:2], parameters[1:-2:2]):
        hidden = jax.nn.relu(hidden @ weight + bias)
    logits = jax.nn.log_softmax(hidden @ parameters[-2] + parameters[-1])
    return -jnp.mean(jnp.take_along_axis(logits, labels[:, None], 1))


def sgd(state, gradients):
    (parameters,) = state
    return ([p - given.LEARNING_RATE * g for p, g in zip(parameters, gradients)],)


def adam(state, gradients):
    (one, two), (parameters, m, v, t) = given.BETAS, state
    t = t + 1
    m = [one * a + (1 - one) * g for a, g in zip(m, gradients)]
    v = [two * a + (1 - two) * g * g for a, g in zip(v, gradients)]
    first, second = (-jnp.expm1(t * math.log(beta)) for beta in given.BETAS)  # 1 - beta^t
    rate, scale = given.LEARNING_RATE / first, 1 / jnp.sqrt(second)
    moved = [
        p - rate * a / (jnp.sqrt(b) * scale + given.EPSILON) for p, a, b in zip(parameters, m, v)
    ]
    return moved, m, v, t


def training(workload):
    """A step, and the state that it starts from."""
    parameters = [jnp.asarray(a) for a in given.weights(given.MLP[workload][1])]
    update, state = sgd, (parameters,)
    if workload.startswith("adam"):
        zeros = [jnp.zeros_like(p) for p in parameters]
        update, state = adam, (parameters, zeros, [z + 0 for z in zeros], jnp.float32(0))

    def train(state, batch):
        loss, gradients = jax.value_and_grad(loss_of)(state[0], *batch)
        return update(state, gradients), loss

    return train, state


def data(workload):
    images, labels = given.batches(workload)
    return jnp.asarray(images), jnp.asarray(labels.astype(np.int32))


def jit_step(workload):
    images, labels = data(workload)
    batches = list(zip(images, labels))
    train, begin = training(workload)
    fast = jax.jit(train, donate_argnums=0)
    state = [begin, None]

    def step(n):
        state[:] = fast(state[0], batches[n % len(batches)])
        return state[1]

    check = given.loss_after(step)
    return Case(step, lambda: jax.block_until_ready(state), check=check)


def scan(workload):
    images, labels = data(workload)
    train, state = training(workload)
    epoch = jax.jit(lambda state, batches: jax.lax.scan(train, state, batches))
    losses = epoch(state, (images, labels))[1]

    def call(_):
        jax.block_until_ready(epoch(state, (images, labels)))

    return Case(call, steps=len(images), check=float(losses[given.CHECKED - 1]))


def inference(_):
    parameters = [jnp.asarray(a) for a in given.weights(given.MLP["mlp16"][1])]
    images = list(given.batches("null1")[0])

    @jax.jit
    def model(x):
        for weight, bias in zip(parameters[0:-2:2], parameters[1:-2:2]):
            x = jax.nn.relu(x @ weight + bias)
        return x @ parameters[-2] + parameters[-1]

    def call(n):
        return np.asarray(model(images[n % len(images)]))

    return Case(call, check=float(call(0).sum()))


if __name__ == "__main__":
    cases = {"jit_step": jit_step, "scan": scan, "inference": inference}
    given.serve(cases, {"jax": jax.__version__, "numpy": np.__version__}, lambda n: None)
