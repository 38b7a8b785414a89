"""What every plug-in is: a frozen, validated set of options whose fields are what a suite may set."""

from typing import ClassVar

from pydantic import BaseModel, ConfigDict, ValidationError

from stealthmark import plugins
from stealthmark.errors import UserError


class Plugin(BaseModel):
    """Base of the four kinds of plug-in. A field is an option; its type and bounds are what a suite is checked against."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    #: The plug-in's name, set by discovery from its file's name.
    name: ClassVar[str] = ""

    def options(self) -> dict:
        """The name and every option's value: what `make` rebuilds this plug-in from, whatever the defaults become."""
        return {"name": self.name, **self.model_dump(mode="json", by_alias=True)}


def make(kind: str, options: dict) -> Plugin:
    """The plug-in that `options` describes: `{"name": ..., option: value, ...}`.

    Raises UserError that names the option, the value found and what is allowed.
    """
    options = dict(options)
    name = options.pop("name")
    cls = plugins.load(kind, name)
    try:
        return cls(**options)
    except ValidationError as error:
        raise UserError(f"{kind} {name!r}: {explain(error, cls)}") from None


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """A pydantic error as one sentence: field, value found, what is allowed."""
    parts = []
    for problem in error.errors():
        field = ".".join(str(step) for step in problem["loc"]) or "the whole"
        if problem["type"] == "extra_forbidden":
            allowed = ", ".join(info.alias or name for name, info in model.model_fields.items()) or "none"
            parts.append(f"there is no field {field!r} (value {problem['input']!r}); fields: {allowed}")
        elif problem["type"] == "missing":
            parts.append(f"the field {field!r} is missing")
        else:
            message = problem["msg"].removeprefix("Value error, ")
            parts.append(f"field {field!r} has the value {problem['input']!r}: {message[0].lower()}{message[1:]}")
    return "; ".join(parts)
