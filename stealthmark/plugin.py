"""What every plug-in is: a frozen, validated set of options whose fields are what a suite may set."""

from typing import ClassVar, get_args

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
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise UserError(f"{kind}: the field 'name' has the value {name!r}; known: {', '.join(plugins.known(kind))}")
    cls = plugins.load(kind, name)
    try:
        return cls(**options)
    except ValidationError as error:
        raise UserError(f"{kind} {name!r}: {explain(error, cls)}") from None


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """A pydantic error as one sentence: field, value found, what is allowed."""
    parts = []
    for problem in error.errors():
        found = repr(problem["input"])
        found = found if len(found) <= 200 else f"{found[:200]}..."
        field = ".".join(str(step) for step in problem["loc"]) or "the whole"
        if problem["type"] == "extra_forbidden":
            fields = _model_at(model, problem["loc"][:-1]).model_fields
            allowed = ", ".join(info.alias or name for name, info in fields.items()) or "none"
            parts.append(f"there is no field {field!r} (value {found}); fields: {allowed}")
        elif problem["type"] == "missing":
            parts.append(f"the field {field!r} is missing")
        else:
            message = problem["msg"].removeprefix("Value error, ")
            parts.append(f"field {field!r} has the value {found}: {message[0].lower()}{message[1:]}")
    return "; ".join(parts)


def _model_at(model: type[BaseModel], place: tuple[str | int, ...]) -> type[BaseModel]:
    """The model of the field at `place` inside `model`, also where it is an item of a list or a mapping."""
    for step in place:
        kind = model.model_fields[step].annotation if step in model.model_fields else None
        models = (part for part in (kind, *get_args(kind)) if isinstance(part, type) and issubclass(part, BaseModel))
        model = next(models, model)
    return model
