"""Small random models of transformers, called as its users call them: keywords in, a `ModelOutput` out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from parity import hugging_face_media as media
from parity import hugging_face_models as models
from parity.case import Call, Case

Inputs = Callable[[Any], dict[str, Any]]
BATCH, LENGTH, VOCABULARY, CLASSES = 2, 10, 64, 3
NOISE = 0.1  # standard deviation of what is added to each parameter


def cases() -> list[Case]:
    """One case for each row of the tables, and more for those that are also trained."""
    found = []
    for name, config, inputs in _rows():
        found.append(Case(name, _build(name, config, inputs, train=False)))
        if name in models.TRAINED:
            found.append(Case(f"{name} (train)", _build(name, config, inputs, train=True)))
        if name in models.CHECKPOINTED:
            found.append(Case(f"{name} (checkpointed)", _checkpointed(name, config, inputs)))
    return found


def _rows() -> Iterator[tuple[str, dict[str, Any], Inputs]]:
    for section, inputs in SECTIONS.items():
        yield from ((name, config, inputs) for name, config in rows(section).items())


def rows(section: str) -> models.Rows:
    """A section of the tables."""
    return getattr(models if hasattr(models, section) else media, section)


def _build(name: str, config: dict[str, Any], inputs: Inputs, *, train: bool) -> Callable[[], list[Call]]:
    def build() -> list[Call]:
        model = make(name.split()[0], config)
        torch.manual_seed(1)
        gradients = train or name not in models.WITHOUT_GRADIENTS
        given, wide = inputs(model), train and name in models.WIDE
        if wide:
            model = model.double()
            given = {name: value.double() if value.is_floating_point() else value for name, value in given.items()}
        return [Call(model, kwargs=given, train=train, drawn=name in models.DRAWN, gradients=gradients, wide=wide)]

    return build


def _checkpointed(name: str, config: dict[str, Any], inputs: Inputs) -> Callable[[], list[Call]]:
    build = _build(name, config, inputs, train=True)

    def checkpointed() -> list[Call]:
        calls = build()
        for call in calls:
            call.module.gradient_checkpointing_enable()
        return calls

    return checkpointed


def make(head: str, config: dict[str, Any]) -> nn.Module:
    """A model by the name of its class, without dropout and without parameters that are exactly 0 or 1."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.manual_seed(0)
    cls = getattr(transformers, head)
    settings = cls.config_class(**config)
    _without_dropout(settings)
    model = cls._from_config(settings)
    with torch.no_grad():
        for parameter in model.parameters():
            # Biases of zero and scales of one would hide what they do.
            parameter.add_(NOISE * torch.randn_like(parameter))
    return model


def _without_dropout(config: Any) -> None:
    for name, value in list(vars(config).items()):
        if hasattr(value, "to_dict"):
            _without_dropout(value)
        elif "drop" in name and isinstance(value, float):
            setattr(config, name, 0.0)


def _tokens(_model: nn.Module | None = None) -> dict[str, Any]:
    """Token numbers above those with a meaning of their own; the second row is padded."""
    ids = torch.randint(4, VOCABULARY, (BATCH, LENGTH))
    mask = torch.ones_like(ids)
    mask[1, -3:] = 0
    return {"input_ids": ids.where(mask == 1, 0), "attention_mask": mask}


def _language(_model: nn.Module) -> dict[str, Any]:
    given = _tokens()
    return {**given, "labels": given["input_ids"].masked_fill(given["attention_mask"] == 0, -100)}


def _language_without_mask(model: nn.Module) -> dict[str, Any]:
    given = _language(model)
    del given["attention_mask"]
    return given


def _classified(_model: nn.Module) -> dict[str, Any]:
    return {**_tokens(), "labels": torch.tensor([0, 2])}


def _translated(_model: nn.Module) -> dict[str, Any]:
    labels = torch.randint(4, VOCABULARY, (BATCH, 6))
    labels[1, -2:] = -100
    return {**_tokens(), "labels": labels}


def _everything(model: nn.Module) -> dict[str, Any]:
    return {**_language(model), "output_hidden_states": True, "output_attentions": True}


def _image(model: nn.Module) -> torch.Tensor:
    config = getattr(model.config, "vision_config", model.config)
    size = getattr(config, "image_size", 32)
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return torch.randn(BATCH, getattr(config, "num_channels", 3), height, width)


def _images(model: nn.Module) -> dict[str, Any]:
    return {"pixel_values": _image(model)}


def _classified_images(model: nn.Module) -> dict[str, Any]:
    return {**_images(model), "labels": torch.tensor([0, 1])}


def _segmented_images(model: nn.Module) -> dict[str, Any]:
    return {**_images(model), "labels": torch.randint(0, CLASSES, (BATCH, 32, 32))}


def _videos(model: nn.Module) -> dict[str, Any]:
    frames = getattr(model.config, "num_frames", 2)
    return {"pixel_values": torch.randn(BATCH, frames, 3, 16, 16), "labels": torch.tensor([0, 1])}


def _pairs(model: nn.Module) -> dict[str, Any]:
    return {**_tokens(), **_images(model), "return_loss": True}


def _captioned(model: nn.Module) -> dict[str, Any]:
    return {**_language(model), **_images(model)}


def _described(model: nn.Module) -> dict[str, Any]:
    return {**_tokens(), **_images(model)}


def _speech(_model: nn.Module) -> dict[str, Any]:
    mask = torch.ones(BATCH, 600, dtype=torch.int64)
    mask[1, -150:] = 0
    labels = torch.randint(4, VOCABULARY, (BATCH, 4))
    return {"input_values": torch.randn(BATCH, 600) * mask, "attention_mask": mask, "labels": labels}


def _spectrogram(model: nn.Module) -> dict[str, Any]:
    features = torch.randn(BATCH, model.config.num_mel_bins, 2 * model.config.max_source_positions)
    labels = torch.randint(4, VOCABULARY, (BATCH, 5))
    labels[1, -2:] = -100
    return {"input_features": features, "labels": labels}


def _frames(_model: nn.Module) -> dict[str, Any]:
    mask = torch.ones(BATCH, 24, dtype=torch.int64)
    mask[1, -8:] = 0
    labels = torch.randint(4, VOCABULARY, (BATCH, 5))
    return {"input_features": torch.randn(BATCH, 24, 16), "attention_mask": mask, "labels": labels}


def _audio_images(model: nn.Module) -> dict[str, Any]:
    config = model.config
    return {"input_values": torch.randn(BATCH, config.max_length, config.num_mel_bins), "labels": torch.tensor([0, 1])}


def _series(model: nn.Module) -> dict[str, Any]:
    length = model.config.context_length
    channels = model.config.num_input_channels
    return {
        "past_values": torch.randn(BATCH, length, channels),
        "future_values": torch.randn(BATCH, model.config.prediction_length, channels),
    }


def _forecast(model: nn.Module) -> dict[str, Any]:
    config = model.config
    past = config.context_length + max(config.lags_sequence)
    features = config.num_time_features
    return {
        "past_values": torch.randn(BATCH, past),
        "past_time_features": torch.randn(BATCH, past, features),
        "past_observed_mask": torch.ones(BATCH, past),
        "future_values": torch.randn(BATCH, config.prediction_length),
        "future_time_features": torch.randn(BATCH, config.prediction_length, features),
    }


def _trajectory(model: nn.Module) -> dict[str, Any]:
    config, steps = model.config, 5
    return {
        "states": torch.randn(BATCH, steps, config.state_dim),
        "actions": torch.randn(BATCH, steps, config.act_dim),
        "rewards": torch.randn(BATCH, steps, 1),
        "returns_to_go": torch.randn(BATCH, steps, 1),
        "timesteps": torch.arange(steps).repeat(BATCH, 1),
        "attention_mask": torch.ones(BATCH, steps, dtype=torch.int64),
    }


SECTIONS: dict[str, Inputs] = {
    "MASKED": _language,
    "MASKED_WITHOUT_MASK": _language_without_mask,
    "CAUSAL": _language,
    "CAUSAL_WITHOUT_MASK": _language_without_mask,
    "EVERYTHING": _everything,
    "UNLABELLED": _tokens,
    "CLASSIFIERS": _classified,
    "TRANSLATORS": _translated,
    "IMAGE_ENCODERS": _images,
    "IMAGE_CLASSIFIERS": _classified_images,
    "SEGMENTERS": _segmented_images,
    "VIDEOS": _videos,
    "PAIRS": _pairs,
    "CAPTIONS": _captioned,
    "DESCRIPTIONS": _described,
    "SPEECH": _speech,
    "SPECTROGRAMS": _spectrogram,
    "FRAMES": _frames,
    "AUDIO_IMAGES": _audio_images,
    "SERIES": _series,
    "FORECASTS": _forecast,
    "TRAJECTORIES": _trajectory,
}
