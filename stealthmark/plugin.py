"""What every plug-in is: a frozen, validated set of options whose fields are what a suite may set."""

from typing import Any, ClassVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from stealthmark import plugins
from stealthmark.errors import UserError


class Plugin(BaseModel):
    """Base of the five kinds of plug-in. A field is an option; its type and bounds are what a suite is checked against."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    #: The plug-in's name, set by discovery from its file's name or its entry point's.
    name: ClassVar[str] = ""

    def options(self) -> dict[str, Any]:
        """The name and every option's value: what `make` rebuilds this plug-in from, whatever the defaults become."""
        return {"name": self.name, **self.model_dump(mode="json", by_alias=True)}


def make(kind: str, options: dict[str, Any]) -> Any:
    """The plug-in that `options` describes: `{"name": ..., option: value, ...}`.

    Raises UserError that names the option, the value found and what is allowed.
    """
    options = dict(options)
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise UserError(f"{kind}: the field 'name' has the value {name!r}; known: {', '.join(plugins.known(kind))}")
    cls = plugins.load(kind, name)
    if not issubclass(cls, Plugin):
        raise UserError(f"{kind} {name!r}: its class is not derived from a contract; allowed: {plugins.CONTRACTS[kind]}")
    try:
        return cls(**options)
    except ValidationError as error:
        raise UserError(f"{kind} {name!r}: {describe_error(error, cls)}") from None


def describe_error(error: ValidationError, model: type[BaseModel]) -> str:
    """A pydantic error as one sentence: field, value found, what is allowed."""
    parts = []
    for problem in error.errors():
        value = repr(problem["input"])
        value = value if len(value) <= 200 else f"{value[:200]}..."
        field = ".".join(str(step) for step in problem["loc"]) or "the whole"
        if problem["type"] == "extra_forbidden":
            fields = _model_at(model, problem["loc"][:-1]).model_fields
            allowed = ", ".join(info.alias or name for name, info in fields.items()) or "none"
            parts.append(f"there is no field {field!r} (value {value}); fields: {allowed}")
        elif problem["type"] == "missing":
            parts.append(f"the field {field!r} is missing")
        else:
            message = problem["msg"].removeprefix("Value error, ")
            parts.append(f"field {field!r} has the value {value}: {message[0].lower()}{message[1:]}")
    return "; ".join(parts)


def _model_at(model: type[BaseModel], place: tuple[str | int, ...]) -> type[BaseModel]:
    """The model of the field at `place` inside `model`, also where it is an item of a list or a mapping."""
    for step in place:
        kind = model.model_fields[step].annotation if isinstance(step, str) and step in model.model_fields else None
        models = (part for part in (kind, *get_args(kind)) if isinstance(part, type) and issubclass(part, BaseModel))
        model = next(models, model)
    return model
