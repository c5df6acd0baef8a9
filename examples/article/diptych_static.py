"""The digit network as a static graph, in diptych: python diptych_static.py [MNIST_FOLDER]"""

import sys

import diptych as dp
import diptych.nn.functional as F
from diptych import data, nn, optim

EPOCHS = 2
folder = sys.argv[1] if len(sys.argv) > 1 else None
train = data.mnist("train", folder) if folder else data.digits("train")
test = data.mnist("test", folder) if folder else data.digits("test")

dp.manual_seed(0)
with dp.Program() as program:
    image = dp.data("image", [None, train.features])
    label = dp.data("label", [None], "i64")
    hidden = F.relu(nn.Linear(train.features, 100)(image))
    hidden = F.relu(nn.Linear(100, 100)(hidden))
    scores = nn.Linear(100, train.classes)(hidden)
    loss = F.cross_entropy(scores, label)
    accuracy = F.accuracy(scores, label)
    test_program = program.clone(for_test=True)
    optim.SGD(program.parameters(), lr=0.1).minimize(loss)

executor = dp.Executor()
executor.run(program.startup)
loader = data.DataLoader(train, batch_size=16, shuffle=True, seed=0)
for epoch in range(EPOCHS):
    for images, labels in loader:
        (value,) = executor.run(program, {"image": images, "label": labels}, [loss])
    images, labels = test.batch(slice(None))
    (share,) = executor.run(test_program, {"image": images, "label": labels}, [accuracy])
    print(f"epoch {epoch}: loss {float(value):.5f}, test accuracy {float(share):.5f}")

dp.save(program, "digits.dip", inputs=["image"], outputs=[scores])
