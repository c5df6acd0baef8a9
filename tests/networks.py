"""The small training job that many tests share."""

from itertools import pairwise

import diptych as dp
import diptych.nn.functional as F
from diptych import nn


def network(*sizes, seed=0):
    """Linear layers of these sizes with relus between them."""
    dp.manual_seed(seed)
    layers = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def step_of(model, optimizer, zero_first=False, look=False):
    """A step of training in either idiom; the loss may be looked at before backward."""

    def step(images, labels):
        if zero_first:
            optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        if look:
            float(loss)
        loss.backward()
        optimizer.step()
        if not zero_first:
            optimizer.zero_grad()
        return loss

    return step
