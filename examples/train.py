"""One trial of a search for hyper-parameters: a small network learns to read handwritten digits.

Real data (scikit-learn's digits, 1,797 images of 8 x 8 pixels), a real training (numpy, one thread, some
seconds). The job's place in its array chooses what to try:

    RAYSCHED_ARRAY_INDEX=5 python train.py

The last line of the output is the result, as JSON after the word RESULT.
"""

from __future__ import annotations

import json
import os
import time

import numpy as np
from sklearn.datasets import load_digits

LEARNING_RATES = (0.003, 0.01, 0.03, 0.1)
HIDDEN_SIZES = (32, 128)
EPOCHS = 400
BATCH = 64


def choose(index: int) -> tuple[float, int]:
    """The learning rate and the hidden size of trial `index`, 0 to 7."""
    return LEARNING_RATES[index // len(HIDDEN_SIZES)], HIDDEN_SIZES[index % len(HIDDEN_SIZES)]


def load() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The images as values from 0 to 1, and their digits: three quarters to learn from, one to test with."""
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    images, labels = digits.images[order] / 16, digits.target[order]
    cut = len(labels) * 3 // 4
    return images[:cut], labels[:cut], images[cut:].reshape(-1, 64), labels[cut:]


def shifted(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each image moved by at most one pixel, so that no epoch sees quite the same ones."""
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1)))
    down, right = rng.integers(0, 3, size=(2, len(images), 1, 1))
    rows, columns = np.arange(8)[:, None] + down, np.arange(8)[None, :] + right
    return padded[np.arange(len(images))[:, None, None], rows, columns].reshape(-1, 64)


class Network:
    """Two layers, trained by gradient descent with momentum."""

    def __init__(self, hidden: int, rng: np.random.Generator) -> None:
        self.weights = [rng.normal(0, 0.15, (64, hidden)), rng.normal(0, 0.15, (hidden, 10))]
        self.biases = [np.zeros(hidden), np.zeros(10)]
        self.speeds = [np.zeros_like(p) for p in self.weights + self.biases]

    def forward(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What the hidden layer answers, and the probability of each digit."""
        hidden = np.maximum(images @ self.weights[0] + self.biases[0], 0)
        scores = hidden @ self.weights[1] + self.biases[1]
        powers = np.exp(scores - scores.max(axis=1, keepdims=True))
        return hidden, powers / powers.sum(axis=1, keepdims=True)

    def learn(self, images: np.ndarray, labels: np.ndarray, rate: float) -> None:
        """One step along the gradient of the cross entropy."""
        hidden, error = self.forward(images)
        error[np.arange(len(labels)), labels] -= 1
        error /= len(labels)
        below = (error @ self.weights[1].T) * (hidden > 0)
        gradients = [images.T @ below, hidden.T @ error, below.sum(axis=0), error.sum(axis=0)]
        parameters = self.weights + self.biases
        for parameter, speed, gradient in zip(parameters, self.speeds, gradients, strict=True):
            np.copyto(speed, 0.9 * speed - rate * gradient)
            np.add(parameter, speed, out=parameter)

    def accuracy(self, images: np.ndarray, labels: np.ndarray) -> float:
        """The part of the images that it reads right."""
        return float((self.forward(images)[1].argmax(axis=1) == labels).mean())


def main() -> None:
    """Train one network and print how well it reads digits that it never saw."""
    rate, hidden = choose(int(os.environ.get("RAYSCHED_ARRAY_INDEX", "0")))
    print(f"learning rate {rate}, {hidden} hidden units", flush=True)
    images, labels, test_images, test_labels = load()
    rng = np.random.default_rng(1)
    network = Network(hidden, rng)
    for epoch in range(1, EPOCHS + 1):
        order = rng.permutation(len(labels))
        epoch_images, epoch_labels = shifted(images, rng)[order], labels[order]
        for start in range(0, len(labels), BATCH):
            network.learn(epoch_images[start : start + BATCH], epoch_labels[start : start + BATCH], rate)
        if epoch % (EPOCHS // 8) == 0:
            accuracy = network.accuracy(test_images, test_labels)
            print(f"epoch {epoch} of {EPOCHS}: accuracy {accuracy:.3f}", flush=True)
    result = {
        "learning_rate": rate,
        "hidden": hidden,
        "accuracy": round(network.accuracy(test_images, test_labels), 4),
        "cpu_s": round(time.process_time(), 2),
    }
    print("RESULT", json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
