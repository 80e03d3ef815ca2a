"""Which layers an adapter goes on: names that a user gives, each of which must be that of a layer."""

import re
from typing import Any

from torch import nn

from align.errors import UserError


def check_targets(network: nn.Module, targets: Any) -> None:
    """Every name must end the name of some layer, as PEFT matches them: one that ends none would be dropped."""
    names = [name for name, _ in network.named_modules()]
    if isinstance(targets, str):
        try:
            re.compile(targets)
        except re.error as error:
            raise UserError(f"adapter.targets={targets!r}: is no regular expression ({error}). Correct it.") from None
        return
    absent = sorted(t for t in targets if not any(name == t or name.endswith(f".{t}") for name in names))
    if absent:
        raise refused(network, f"no layer is named {', '.join(absent)}")


def refused(network: nn.Module, why: str) -> UserError:
    """An error that says which names there are."""
    ends = sorted({n.rsplit(".", 1)[-1] for n, m in network.named_modules() if isinstance(m, nn.Linear)})
    return UserError(
        f"adapter.targets: {why} in {type(network).__name__}. Its linear layers end in: {', '.join(ends)}. Correct the "
        "name, or remove it."
    )
