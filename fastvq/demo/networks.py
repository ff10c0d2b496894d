"""The networks of the demos, in PyTorch: a LeNet, MobileNetV2, and BERT's encoder as MiniLM has it.

Parameters have the names under which their published weights are stored.
"""

import torch
from torch import nn

__all__ = ["LeNet", "MobileNetV2", "SentenceEncoder"]


class LeNet(nn.Module):
    """Two convolutions and two dense layers for 28 x 28 pictures (after LeCun et al., 1998)."""

    def __init__(self, n_classes=10):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 20, 5), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(20, 50, 5), nn.ReLU(), nn.MaxPool2d(2),
        )  # fmt: skip
        self.classifier = nn.Sequential(
            nn.Flatten(), nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, n_classes)
        )

    def forward(self, x):
        return self.classifier(self.features(x))


def _convolution(n_in, n_out, kernel=3, stride=1, groups=1):
    return nn.Sequential(
        nn.Conv2d(n_in, n_out, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(n_out),
        nn.ReLU6(),
    )


class _InvertedResidual(nn.Module):
    def __init__(self, n_in, n_out, stride, expansion):
        super().__init__()
        wide = n_in * expansion
        layers = [] if expansion == 1 else [_convolution(n_in, wide, 1)]
        layers += [_convolution(wide, wide, 3, stride, groups=wide)]
        layers += [nn.Conv2d(wide, n_out, 1, bias=False), nn.BatchNorm2d(n_out)]
        self.conv = nn.Sequential(*layers)
        self.skips = stride == 1 and n_in == n_out

    def forward(self, x):
        return x + self.conv(x) if self.skips else self.conv(x)


class MobileNetV2(nn.Module):
    """Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", 2018, table 2."""

    # expansion, channels, repetitions, stride of the first
    BLOCKS = (
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2),
        (6, 320, 1, 1),
    )  # fmt: skip

    def __init__(self, n_classes=1000):
        super().__init__()
        layers, n_in = [_convolution(3, 32, stride=2)], 32
        for expansion, n_out, repetitions, stride in self.BLOCKS:
            for i in range(repetitions):
                layers.append(_InvertedResidual(n_in, n_out, stride if i == 0 else 1, expansion))
                n_in = n_out
        self.features = nn.Sequential(*layers, _convolution(n_in, 1280, 1))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, n_classes))

    def forward(self, x):
        return self.classifier(self.features(x).mean((2, 3)))


class _Attention(nn.Module):
    def __init__(self, width, n_heads):
        super().__init__()
        self.n_heads = n_heads
        for name in ("query", "key", "value"):
            setattr(self, name, nn.Linear(width, width))
        self.out, self.norm = nn.Linear(width, width), nn.LayerNorm(width, 1e-12)

    def forward(self, x, mask):
        n, length, width = x.shape
        parts = (self.query(x), self.key(x), self.value(x))
        split = [p.reshape(n, length, self.n_heads, -1).transpose(1, 2) for p in parts]
        query, key, value = split
        scores = query @ key.transpose(2, 3) / (width // self.n_heads) ** 0.5 + mask
        mixed = (scores.softmax(-1) @ value).transpose(1, 2).reshape(n, length, width)
        return self.norm(self.out(mixed) + x)


class _Layer(nn.Module):
    def __init__(self, width, n_heads, inner):
        super().__init__()
        self.attention = _Attention(width, n_heads)
        self.rise, self.fall = nn.Linear(width, inner), nn.Linear(inner, width)
        self.norm = nn.LayerNorm(width, 1e-12)

    def forward(self, x, mask):
        x = self.attention(x, mask)
        return self.norm(self.fall(nn.functional.gelu(self.rise(x))) + x)


class SentenceEncoder(nn.Module):
    """BERT's encoder with the mean over words, of unit length: what all-MiniLM-L6-v2 is.

    Devlin et al., "BERT", 2019; Reimers and Gurevych, "Sentence-BERT", 2019.
    """

    def __init__(self, n_words=30522, width=384, n_layers=6, n_heads=12, inner=1536, longest=512):
        super().__init__()
        self.words = nn.Embedding(n_words, width)
        self.places = nn.Embedding(longest, width)
        self.kinds = nn.Embedding(2, width)
        self.norm = nn.LayerNorm(width, 1e-12)
        self.layers = nn.ModuleList(_Layer(width, n_heads, inner) for _ in range(n_layers))

    def forward(self, input_ids, attention_mask):
        places = torch.arange(input_ids.shape[1])
        x = self.norm(self.words(input_ids) + self.places(places) + self.kinds.weight[0])
        present = attention_mask.to(torch.float32)
        mask = (1 - present)[:, None, None, :] * -1e9
        for layer in self.layers:
            x = layer(x, mask)
        present = present[:, :, None]
        mean = (x * present).sum(1) / present.sum(1).clamp(min=1e-9)
        return nn.functional.normalize(mean)

    @classmethod
    def from_bert(cls, weights):
        """With the weights of a BERT checkpoint, a mapping of Hugging Face's names to tensors."""
        model = cls()
        model.load_state_dict({_own_name(name): w for name, w in weights.items() if _is_used(name)})
        return model.eval()


_RENAMED = (
    ("embeddings.word_embeddings", "words"),
    ("embeddings.position_embeddings", "places"),
    ("embeddings.token_type_embeddings", "kinds"),
    ("embeddings.LayerNorm", "norm"),
    ("encoder.layer", "layers"),
    ("attention.self", "attention"),
    ("attention.output.dense", "attention.out"),
    ("attention.output.LayerNorm", "attention.norm"),
    ("intermediate.dense", "rise"),
    ("output.dense", "fall"),
    ("output.LayerNorm", "norm"),
)


def _own_name(name):
    for theirs, ours in _RENAMED:
        name = name.replace(theirs, ours)
    return name


def _is_used(name):
    return not name.startswith("pooler") and not name.endswith("position_ids")
