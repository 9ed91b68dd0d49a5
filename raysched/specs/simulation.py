"""Which GPUs are made up."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator

from raysched.specs.problems import quoted
from raysched.specs.values import Text

_GPUS = re.compile(r"([1-9][0-9]*x)?[A-Za-z][\w.+-]*", re.IGNORECASE)


def parse_simulation(value: str) -> str:
    """A list of GPUs to simulate; which models there are, `raysched.gpu` knows. Raises ValueError."""
    if not all(_GPUS.fullmatch(part.strip()) for part in value.split(",")):
        raise ValueError(f"{quoted(value)} is no list of counts and models, such as 2xA100-80GB,1xA30")
    return value


Simulation = Annotated[Text, AfterValidator(parse_simulation)]
