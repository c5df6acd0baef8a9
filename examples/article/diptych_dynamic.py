"""The digit network as a dynamic graph, in diptych: python diptych_dynamic.py [MNIST_FOLDER]"""

import sys

import diptych as dp
import diptych.nn.functional as F
from diptych import data, nn, optim

EPOCHS = 2
folder = sys.argv[1] if len(sys.argv) > 1 else None
train = data.mnist("train", folder) if folder else data.digits("train")
test = data.mnist("test", folder) if folder else data.digits("test")

dp.manual_seed(0)
model = nn.Sequential(
    nn.Linear(train.features, 100),
    nn.ReLU(),
    nn.Linear(100, 100),
    nn.ReLU(),
    nn.Linear(100, train.classes),
)
optimizer = optim.SGD(model.parameters(), lr=0.1)

loader = data.DataLoader(train, batch_size=16, shuffle=True, seed=0)
for epoch in range(EPOCHS):
    for images, labels in loader:
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    images, labels = test.batch(slice(None))
    with dp.no_grad():
        share = F.accuracy(model(images), labels)
    print(f"epoch {epoch}: loss {loss.item():.5f}, test accuracy {share.item():.5f}")

dp.save_state(model.state_dict(), "digits.safetensors")
