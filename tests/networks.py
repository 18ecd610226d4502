"""Networks that tests share: one for each thing that a token pipeline gets wrong."""

from collections.abc import Callable, Mapping

import torch
from torch import nn
from torch.nn.utils import parametrizations, prune


class Tied(nn.Module):
    """A language model whose output layer is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.hidden = nn.Linear(6, 6)
        self.out = nn.Linear(6, 11, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, x):
        return self.out(self.hidden(self.embed(x)).relu())


class LoneTensors(nn.Module):
    """Parameters that belong to no torch layer, as class tokens and layer scales do."""

    def __init__(self) -> None:
        super().__init__()
        self.class_token = nn.Parameter(torch.randn(1, 1, 8))
        self.layer_scale = nn.Parameter(torch.randn(8, 1, 1))
        self.temperature = nn.Parameter(torch.tensor(0.5))
        self.register_buffer("table", torch.randn(5, 8))
        self.register_buffer("index", torch.arange(5))
        self.linear = nn.Linear(8, 3)

    def forward(self, x):
        return self.linear((x + self.class_token + self.table.mean(0)) * self.temperature)


class BiasFirst(nn.Module):
    """A layer of its own making whose bias is registered before its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.randn(4))
        self.weight = nn.Parameter(torch.randn(4, 3))

    def forward(self, x):
        return nn.functional.linear(x, self.weight, self.bias)


class Standardized(nn.Conv2d):
    """A convolution that standardises its weight: the trace sees two tensors, not a layer."""

    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return nn.functional.conv2d(x, weight, self.bias)


class Branching(nn.Module):
    """A block that no trace enters; its norm's scale has the shape of its convolution's bias."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, bias=False)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x):
        return self.norm(self.conv(x)) if x.sum() > 0 else self.conv(x)


def _same_memory() -> nn.Module:
    network = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5, bias=False))
    network[1].weight = nn.Parameter(network[0].weight.data)
    return network


def _late_pruned() -> nn.Module:
    network = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    prune.l1_unstructured(network[2], "weight", 0.5)
    return network


def _pruned() -> nn.Module:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 4))
    prune.l1_unstructured(network[0], "weight", 0.6)
    prune.ln_structured(network[3], "weight", 0.5, n=2, dim=0)
    return network


def _parametrized() -> nn.Module:
    return nn.Sequential(parametrizations.weight_norm(nn.Linear(5, 7)), nn.Tanh(), nn.Linear(7, 2))


def _depthwise() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 1),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 4, 1),
    )


def _transposed() -> nn.Module:
    return nn.Sequential(
        nn.ConvTranspose2d(4, 6, 3), nn.ReLU(), nn.ConvTranspose2d(6, 4, 2, groups=2)
    )


def _transformer() -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    return nn.Sequential(nn.Linear(8, 16), nn.TransformerEncoder(layer, 2), nn.Linear(16, 3))


HAND_MADE: Mapping[str, Callable[[], nn.Module]] = {
    "depthwise": _depthwise,
    "transposed": _transposed,
    "tied": Tied,
    "lstm": lambda: nn.LSTM(5, 7, num_layers=2, bidirectional=True),
    "transformer": _transformer,
    "lone tensors": LoneTensors,
    "pruned": _pruned,
    "parametrised": _parametrized,
    "bias first": lambda: nn.Sequential(BiasFirst(), nn.Linear(4, 2)),
    "standardised": lambda: nn.Sequential(Standardized(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)),
    "branching": lambda: nn.Sequential(nn.Conv2d(3, 3, 1), Branching(), nn.Conv2d(8, 2, 1)),
    "same memory": _same_memory,
    "late pruned": _late_pruned,
    "spectral": lambda: nn.Sequential(parametrizations.spectral_norm(nn.Linear(6, 5))),
    "half": lambda: nn.Linear(9, 5).half(),
    "bfloat16": lambda: nn.Conv2d(3, 4, 3).bfloat16(),
    "float8": lambda: nn.Linear(9, 5).to(torch.float8_e4m3fn),
    "double": lambda: nn.Sequential(nn.Linear(9, 5).double(), nn.Linear(5, 2)),
}
TORCHVISION = (
    "resnet18",
    "resnet50",
    "vgg11_bn",
    "mobilenet_v3_small",
    "densenet121",
    "convnext_tiny",
    "efficientnet_b0",
    "vit_b_16",
    "swin_t",
    "googlenet",
)
CHECKPOINTS = (
    "akamaster_pytorch_resnet_cifar10/resnet20-12fca82f.th",
    "akamaster_pytorch_resnet_cifar10/resnet32-d509ac18.th",
    "akamaster_pytorch_resnet_cifar10/resnet56-4bfd9763.th",
    "github_wild/FYH620__lenet-mnist-openvino__lenet.pth",
    "onnxruntime_testdata/ckpt_mnist.pt",
    "pypi_ccexam/mnist.pth",
    "pypi_ccexam/svhn.pth",
    "pypi_ccexam/usps.pth",
    "pypi_facenet_pytorch/onet.pt",
    "pypi_facenet_pytorch/pnet.pt",
    "pypi_facenet_pytorch/rnet.pt",
    "pypi_lpips/alex.pth",
    "pypi_lpips/squeeze.pth",
    "pypi_lpips/vgg.pth",
    "pypi_silero_vad/silero_vad_16k.safetensors",
)
