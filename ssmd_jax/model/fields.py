"""Fields of a published network's config.json: those it needs, and those that would make it another network."""

from collections.abc import Mapping
from typing import Any


def check_fixed(fields: Mapping[str, Any], fixed: Mapping[str, Any], name: str) -> None:
    """Refuses fields with another value than the one that is supported.

    Args:
        fields: of the file.
        fixed: the supported value of each; where a field is absent it has this value.
        name: of the network.

    Raises:
        ValueError: naming the field.
    """
    for field, value in fixed.items():
        if fields.get(field, value) != value:
            raise ValueError(f"{name} with {field} {fields[field]!r} is not supported, only {value!r}")


def needed(fields: Mapping[str, Any], field: str, name: str) -> Any:
    """A field that must be there; arguments as `check_fixed`.

    Raises:
        ValueError: where it is missing, or null.
    """
    if fields.get(field) is None:
        raise ValueError(f"config.json of a {name} model needs the field {field}")
    return fields[field]
