"""Gradient steps of the networks that `testudo bench kernels` measures, by PyTorch in eager mode: the file that its --peer takes.

    python tests/peers/torch_eager.py > torch.json
    testudo bench kernels --json --peer torch.json

Everything is f32, without TF32, as Testudo's exact products are. A step is what a worker's is: inputs, labels and parameters from the host's
memory, forward, backward, and gradients back in the host's memory. --resident leaves parameters and gradients on the GPU, which is how PyTorch
trains alone; that is the harder peer.
"""

import argparse
import json
import statistics
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn


class Mlp(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 10))


class Cnn(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
            nn.Linear(64 * 12 * 12, 128), nn.ReLU(), nn.Linear(128, 10),
        )


class Block(nn.Module):
    """Two convolutions with batch norm beside a shortcut (He, Zhang, Ren, Sun, CVPR 2016)."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x):
        inner = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(inner)) + self.shortcut(x))


class ResNet18(nn.Module):
    """For images of 32 x 32: a stem of 3 x 3, stride 1, without pooling."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU())
        blocks, inputs = [], 64
        for outputs, stride in [(64, 1), (128, 2), (256, 2), (512, 2)]:
            blocks += [Block(inputs, outputs, stride), Block(outputs, outputs, 1)]
            inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(512, 10)

    def forward(self, x):
        return self.fc(self.blocks(self.stem(x)).mean((2, 3)))


class GptBlock(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.ln1, self.ln2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.widen, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        examples, positions, width = x.shape
        parts = self.qkv(self.ln1(x)).split(width, dim=2)
        query, key, value = (part.view(examples, positions, self.heads, -1).transpose(1, 2) for part in parts)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.proj(mixed.transpose(1, 2).reshape(examples, positions, width))
        return x + self.narrow(F.gelu(self.widen(self.ln2(x)), approximate="tanh"))


class Gpt(nn.Module):
    """GPT-2's form (Radford and others, 2019); the output layer is the embedding table."""

    def __init__(self, vocabulary=256, context=256, layers=6, heads=6, width=384):
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(GptBlock(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens):
        x = self.tokens(tokens) + self.places.weight[: tokens.shape[1]]
        return F.linear(self.norm(self.blocks(x)), self.tokens.weight)


# By name: the network, the examples of a step, what an example is, targets and classes of each.
NETWORKS = {
    "mlp": (Mlp, 1024, (784,), 1, 10),
    "cnn": (Cnn, 256, (1, 28, 28), 1, 10),
    "resnet18": (ResNet18, 128, (3, 32, 32), 1, 10),
    "gpt": (Gpt, 16, (256,), 256, 256),
}


def measure(name, device, repeat, resident, most):
    """One network's entry of the file: milliseconds are the median's."""
    build, examples, shape, targets, classes = NETWORKS[name]
    examples = min(examples, most or examples)
    network = build().to(device).train()
    parameters = list(network.parameters())
    count = examples * torch.Size(shape).numel()
    inputs = (torch.arange(count) % classes).reshape(examples, *shape)
    inputs = inputs if name == "gpt" else inputs.float()
    labels = torch.arange(examples * targets) % classes
    on_gpu = device != "cpu"
    room = lambda like: torch.empty(like.shape, dtype=like.dtype, pin_memory=on_gpu)
    host = [room(parameter).copy_(parameter.detach()) for parameter in parameters]
    gradients = [room(parameter) for parameter in parameters]
    if on_gpu:
        inputs, labels = inputs.pin_memory(), labels.pin_memory()

    def step():
        if not resident:
            with torch.no_grad():
                for parameter, values in zip(parameters, host):
                    parameter.copy_(values, non_blocking=True)
        network.zero_grad(set_to_none=True)
        logits = network(inputs.to(device, non_blocking=True)).reshape(-1, classes)
        F.cross_entropy(logits, labels.to(device, non_blocking=True), reduction="sum").backward()
        if not resident:
            for into, parameter in zip(gradients, parameters):
                into.copy_(parameter.grad, non_blocking=True)
        if on_gpu:
            torch.cuda.synchronize()

    times = []
    for _ in range(3 + repeat):
        start = time.perf_counter()
        step()
        times.append(1e3 * (time.perf_counter() - start))
    learned = sum(parameter.numel() for parameter in parameters)
    return {"examples": examples, "parameters": learned, "milliseconds": statistics.median(times[3:])}


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--device", default="cuda:0", help="cuda:0, or cpu to try this out")
    arguments.add_argument("--repeat", type=int, default=20)
    arguments.add_argument("--resident", action="store_true", help="leave parameters and gradients where they are")
    arguments.add_argument("--examples", type=int, default=0, help="at most so many, to try this out")
    of = arguments.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.manual_seed(1)
    gpu = torch.cuda.get_device_name(of.device) if of.device != "cpu" else "cpu"
    models = {name: measure(name, of.device, of.repeat, of.resident, of.examples) for name in NETWORKS}
    json.dump({"framework": f"PyTorch {torch.__version__}, eager", "gpu": gpu, "models": models}, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
