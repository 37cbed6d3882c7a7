"""Recurrent networks."""

from __future__ import annotations

from torch import Tensor, nn


class LstmClassifier(nn.Module):
    """An LSTM over a sequence, judged by its last output."""

    def __init__(self, features: int, width: int, layers: int, classes: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(features, width, layers, batch_first=True)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


class GruTagger(nn.Module):
    """Word embeddings, a GRU in both directions, a tag for each word."""

    def __init__(self, words: int, width: int, layers: int, tags: int) -> None:
        super().__init__()
        self.words = nn.Embedding(words, width)
        self.gru = nn.GRU(width, width, layers, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * width, tags)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.gru(self.words(ids))[0])
