"""Where a network is called: where its adapters are, whatever its own weights rest on."""

import torch
from torch import nn

from align.models._base import device_of


def test_the_adapters_say_it():
    network = nn.Module()
    network.conv_in = nn.Linear(2, 2)
    assert device_of(network) == torch.device("cpu")
    network.block = nn.Module()
    network.block.lora_A = nn.Module()
    network.block.lora_A.default = nn.Linear(2, 2, device="meta")
    network.block = nn.ModuleDict({"to_q": network.block})  # named as PEFT does: block.to_q.lora_A.default.weight
    assert device_of(network) == torch.device("meta")
    assert device_of(nn.Module()) == torch.device("cpu")
