"""The pydantic model all configuration shares: unknown keys refused, errors readable, secrets out of sight."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    ValidationError,
    ValidatorFunctionWrapHandler,
    field_validator,
)

from esper.configs.problems import from_validation
from esper.configs.redaction import redacted
from esper.configs.secrets import FromFile

P = ParamSpec("P")
T = TypeVar("T")


def _has_no_null(path: str) -> str:
    if "\0" in path:
        raise ValueError("should have no null character: no file or folder has one in its name")
    return path


Place = Annotated[str, AfterValidator(_has_no_null)]
"""The path of a file or a folder."""


class ConfigModel(BaseModel):
    """A section of the configuration.

    Fields may be assigned, and are validated when they are. A field declared with `repr=False` is a secret.

    Raises:
        ConfigError: A value is refused; every problem is listed, no value is shown.
    """

    model_config = ConfigDict(
        extra="forbid",
        validate_assignment=True,
        hide_input_in_errors=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )

    # Hidden from type checkers, which then see the constructor pydantic generates from the fields.
    if not TYPE_CHECKING:

        def __init__(self, /, **values: Any) -> None:
            _readably(type(self), super().__init__, **values)

        # Nested sections are built by pydantic directly, so that a problem keeps its whole path.
        __init__.__pydantic_base_init__ = True

        def __setattr__(self, name: str, value: Any) -> None:
            _readably(type(self), super().__setattr__, name, value)

    @field_validator("*", mode="wrap")
    @classmethod
    def _stay_secret(cls, value: Any, validated: ValidatorFunctionWrapHandler) -> Any:
        """What came from a file keeps its type, which hides it whatever the name of the field."""
        found = validated(value)
        return value if isinstance(value, FromFile) and isinstance(found, str) and value == found else found

    @classmethod
    def model_validate(cls, obj: Any, **options: Any) -> Self:
        """As pydantic's, with a `ConfigError` for what is refused."""
        return _readably(cls, super().model_validate, obj, **options)

    @classmethod
    def model_validate_json(cls, json_data: str | bytes | bytearray, **options: Any) -> Self:
        """As pydantic's, with a `ConfigError` for what is refused."""
        return _readably(cls, super().model_validate_json, json_data, **options)

    @classmethod
    def model_validate_strings(cls, obj: Any, **options: Any) -> Self:
        """As pydantic's, with a `ConfigError` for what is refused."""
        return _readably(cls, super().model_validate_strings, obj, **options)

    def redacted(self) -> dict[str, Any]:
        """The section as plain containers with every secret replaced by `***`: what a log may hold."""
        return redacted(self)

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        for name, value in super().__repr_args__():
            # Sections redact themselves; this catches secrets in the free-form ones.
            yield name, value if isinstance(value, BaseModel) else _shown(value)


def _shown(value: Any) -> Any:
    if isinstance(value, dict) and any(isinstance(item, BaseModel) for item in value.values()):
        return value
    return redacted(value)


def _readably(model: type[BaseModel], function: Callable[P, T], /, *args: P.args, **options: P.kwargs) -> T:
    """Call `function`; what pydantic refuses becomes a `ConfigError`."""
    try:
        return function(*args, **options)
    except ValidationError as error:
        refused = from_validation(error, model)
    # Outside the handler: pydantic's error holds the values, and must not be the context of ours.
    raise refused
