"""Prints the accuracy of an exported model on MNIST's test set, with nothing of Testudo's own.

Usage: forward.py MODEL.safetensors DATA_FOLDER MEAN STD
"""
import gzip
import sys

import numpy as np
from safetensors.numpy import load_file

weights, folder, mean, std = load_file(sys.argv[1]), sys.argv[2], float(sys.argv[3]), float(sys.argv[4])
images = np.frombuffer(gzip.open(f"{folder}/t10k-images-idx3-ubyte.gz").read(), np.uint8, offset=16)
labels = np.frombuffer(gzip.open(f"{folder}/t10k-labels-idx1-ubyte.gz").read(), np.uint8, offset=8)
values = ((images.reshape(len(labels), -1) / 255 - mean) / std).astype(np.float32)
layers = len(weights) // 2
for layer in range(1, layers + 1):
    values = values @ weights[f"fc{layer}.weight"].T + weights[f"fc{layer}.bias"]
    values = np.maximum(values, 0) if layer < layers else values
print((values.argmax(axis=1) == labels).mean())
