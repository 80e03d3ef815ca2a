"""What an optimiser moves: the Trainable protocol, Adapter, a LoRA on a model's network, and Module, a network of an
objective's own (noise: align/policy/noise.py)."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from align.policy import lora, switch
from align.policy.lora import AdapterConfig
from samplers import generator


class Trainable(Protocol):
    """A set of parameters and how they are clipped, stored and handed over. Its parameter list never changes."""

    rowwise: bool
    """Whether each row of the parameters is optimised by itself, its gradient summed and not averaged (noise)."""

    def parameters(self) -> list[nn.Parameter]: ...

    def prepare(self, accelerator: Any) -> None:
        """Moves the parameters to where they are trained; called once, before the optimiser is built."""
        ...

    def train(self, mode: bool = True) -> None:
        """Switches what is random in training (dropout) on, or off."""
        ...

    def clip(self, max_norm: float | None) -> Tensor:
        """Limits the gradients' norm and returns the norm before that, (); None only measures."""
        ...

    def metrics(self) -> dict[str, float]:
        """What the record of an update says of the parameters."""
        ...

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state: dict[str, Tensor]) -> None: ...

    def export(self, path: Path) -> None:
        """Writes the form that users load into the folder `path`."""
        ...


class Adapter:
    """A LoRA on `network`, by the name `name` among others on it; `targets` are the model family's, used where the
    config names none. `trained` false: it has no gradient and is only looked at (a snapshot)."""

    rowwise = False

    def __init__(
        self,
        config: AdapterConfig,
        network: nn.Module,
        targets: list[str] | str,
        *,
        component: str = "unet",
        seed: int = 0,
        name: str = lora.NAME,
        trained: bool = True,
    ):
        self.config, self.network, self.targets = config, network, targets
        self.component, self.seed, self.name = component, seed, name
        self.said: dict[str, str] = {}  # what the metadata of an exported file say besides
        self.layers = lora.inject(network, config, targets, seed=seed, name=name)
        if config.init is not None:
            lora.load(network, config.init, component=component, into=name)
        self._parameters = lora.parameters(network, name)
        for parameter in self._parameters:
            parameter.requires_grad_(trained)
        self._dropouts = [m for layer in self.layers for m in layer.lora_dropout[name].modules()]
        network.eval()

    def beside(self, name: str, *, trained: bool, changes: Mapping[str, Any] | None = None) -> "Adapter":
        """A further adapter on the same network, of the same form but for `changes` to the config."""
        config = AdapterConfig.model_validate({**self.config.model_dump(), **(changes or {})})
        seed = generator(self.seed, name, 0).initial_seed()
        options = {"component": self.component, "seed": seed, "name": name, "trained": trained}
        made = Adapter(config, self.network, self.targets, **options)
        if made.parameters()[0].device != (device := self._parameters[0].device):
            self.network.to(device)
            made._parameters = lora.parameters(self.network, name)
        return made

    def parameters(self) -> list[nn.Parameter]:
        return self._parameters

    def prepare(self, accelerator: Any) -> None:
        self.network.to(accelerator.device)

    def train(self, mode: bool = True) -> None:
        """Switches the adapter's dropout; the network itself stays in eval mode."""
        for module in self._dropouts:
            module.training = mode

    def clip(self, max_norm: float | None) -> Tensor:
        limit = float("inf") if max_norm is None else max_norm
        return torch.nn.utils.clip_grad_norm_(self._parameters, limit)

    def disabled(self) -> AbstractContextManager[None]:
        return switch.disabled(self.layers)

    def scaled(self, strength: float) -> AbstractContextManager[None]:
        return switch.scaled(self.layers, self.name, strength)

    def metrics(self) -> dict[str, float]:
        return {"adapter_norm": float(lora.delta_norm(self.layers, self.name))}

    def state_dict(self) -> dict[str, Tensor]:
        return {n: p.detach() for n, p in lora.named(self.network, self.name)}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        own = self.state_dict()
        if own.keys() != state.keys():
            raise ValueError(f"the state holds other parameters than the adapter: {sorted(own.keys() ^ state.keys())}")
        for name, value in own.items():
            value.copy_(state[name])

    def export(self, path: Path) -> None:
        lora.save(self.network, path, component=self.component, name=self.name, more=self.said)


class Module:
    """Some `parameters` of a network that an objective brings along; `save` writes it into a folder."""

    rowwise = False

    def __init__(self, network: nn.Module, parameters: list[nn.Parameter], save: Callable[[Path], None]):
        self.network, self._parameters, self._save = network, parameters, save
        for parameter in parameters:
            parameter.requires_grad_()
        network.eval()

    def parameters(self) -> list[nn.Parameter]:
        return self._parameters

    def prepare(self, accelerator: Any) -> None:
        self.network.to(accelerator.device)

    def train(self, mode: bool = True) -> None:
        self.network.train(mode)

    def clip(self, max_norm: float | None) -> Tensor:
        return torch.nn.utils.clip_grad_norm_(self._parameters, float("inf") if max_norm is None else max_norm)

    def metrics(self) -> dict[str, float]:
        return {}

    def state_dict(self) -> dict[str, Tensor]:
        trained = {id(parameter) for parameter in self._parameters}
        return {name: p.detach() for name, p in self.network.named_parameters() if id(p) in trained}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, value in self.state_dict().items():
            value.copy_(state[name])

    def export(self, path: Path) -> None:
        self._save(path)
