"""Small models of each type the library promises, written as users write them."""

import torch
from torch import nn
from torch.nn import functional as F


class CNN(nn.Module):
    def __init__(self, channels=6, classes=4):
        super().__init__()
        self.body = nn.Sequential(
            # No bias before a BatchNorm: its gradient is rounding noise, which Adam turns into full steps.
            nn.Conv2d(3, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False, padding_mode="circular"),
            nn.BatchNorm2d(channels),
            nn.GELU(),
        )
        self.head = nn.Linear(channels, classes)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))


class Recurrent(nn.Module):
    def __init__(self, kind=nn.LSTM, classes=4):
        super().__init__()
        self.embed = nn.Embedding(13, 8)
        self.rnn = kind(8, 12, num_layers=2, batch_first=True)
        self.head = nn.Linear(12, classes)

    def forward(self, tokens):
        out, _ = self.rnn(self.embed(tokens))
        return self.head(out[:, -1])


class Block(nn.Module):
    def __init__(self, width, heads, causal):
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        batch, length, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + self.proj(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


class ViT(nn.Module):
    def __init__(self, width=16, classes=4):
        super().__init__()
        self.patch = nn.Conv2d(3, width, 4, stride=4)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.place = nn.Parameter(0.02 * torch.randn(1, 5, width))
        self.blocks = nn.ModuleList(Block(width, 2, causal=False) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.place
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


class GPT(nn.Module):
    """Its output layer is tied to its embedding."""

    def __init__(self, width=16, vocabulary=13, length=8):
        super().__init__()
        self.token, self.place = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width, 2, causal=True) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.token.weight

    def forward(self, tokens):
        x = self.token(tokens) + self.place(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def mlp():
    return nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 4))


def images(batch=4):
    return torch.randn(batch, 3, 8, 8)


def tokens(batch=4, length=6):
    return torch.randint(0, 13, (batch, length))


ZOO = {
    "mlp": (mlp, lambda batch=4: torch.randn(batch, 5)),
    "cnn": (CNN, images),
    "lstm": (Recurrent, tokens),
    "gru": (lambda: Recurrent(nn.GRU), tokens),
    "vit": (ViT, images),
    "gpt": (GPT, tokens),
}


def build(name, key=0, batch=4):
    """A model of the zoo and an input for it, reproducible."""
    torch.manual_seed(key)
    make, example = ZOO[name]
    return make(), example(batch)
