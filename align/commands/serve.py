"""`align serve-reward`: a reward behind an HTTP endpoint, so that a large judge lives on another GPU or machine."""

import os
from typing import TYPE_CHECKING, Annotated

import typer

from align.errors import UserError

if TYPE_CHECKING:
    import torch

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def serve_reward(
    reward: Annotated[str, typer.Argument(help="A name (align rewards), or label=name.")],
    settings: Annotated[list[str] | None, typer.Argument(help="Its settings: hpsv3.dtype=bfloat16 ...")] = None,
    change: Annotated[list[str] | None, typer.Option("--set", help="The same: --set hpsv3.dtype=bfloat16")] = None,
    host: Annotated[str, typer.Option(help="The address to listen at; others than loopback need --key.")] = LOOPBACK[0],
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8000,
    batch: Annotated[int, typer.Option("--batch-size", "--batch", min=1, help="Images scored at once.")] = 16,
    wait: Annotated[float, typer.Option(min=0, help="Milliseconds to wait for more of them.")] = 20.0,
    key: Annotated[str | None, typer.Option(help="Variable of the environment with the key to ask for.")] = None,
    device: Annotated[str | None, typer.Option(help="cuda:1, cpu; default: the GPU, if there is one.")] = None,
) -> None:
    """Serve a reward for the reward http: {name: http, url: "http://HOST:PORT/v1", model: NAME, answer: score}."""
    from align.evaluation.score_inputs import reward_configs

    secret = os.environ.get(key, "").strip() if key else ""
    if key and not secret:
        raise UserError(f"--key {key}: is no variable of the environment, or is empty. Set it to a key of your own.")
    if host not in LOOPBACK and not secret:
        raise UserError(f"--host {host}: others could ask too. Give --key with a variable that holds a key.")
    [(label, config)] = reward_configs([reward], [*(settings or ()), *(change or ())]).items()
    for setting, text in config.conflicts({}):
        raise UserError(f"{label}{setting}: {text}")
    import torch

    from align.evaluation.serve import Batcher, server
    from align.registry import REWARDS, build
    from rewards import Composite

    place = torch.device("cuda" if torch.cuda.is_available() else "cpu") if device is None else _device(device)
    composite = Composite({label: build(REWARDS, config)}).to(place)
    batcher = Batcher(lambda images, prompts: composite(images.to(place), prompts)[label], batch, wait / 1000)
    try:
        listening = server(batcher, label, host, port, secret)
    except OSError as error:
        raise UserError(f"--port {port}: cannot listen at {host} ({error.strerror}). Choose another.") from None
    url = f"http://{host}:{listening.server_port}/v1"
    typer.echo(f'{label} at {url}: rewards={{judge: {{name: http, url: "{url}", model: {label}, answer: score}}}}')
    try:
        listening.serve_forever()
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    finally:
        listening.server_close()


def _device(name: str) -> "torch.device":
    """The device of that name, which is tried: torch knows names of more than there are here."""
    import torch

    try:
        place = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name}: is none. Give cpu, cuda or cuda:1.") from None
    try:
        torch.zeros(1, device=place).item()
    except Exception:  # of each kind of device its own
        known = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
        raise UserError(f"--device {name}: is not on this machine. Choose {' or '.join(known)}.") from None
    return place
