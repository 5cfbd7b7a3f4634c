"""Initial weights of low-rank adapters (LoRA), found in the program of any framework."""

from jaxinit._lora import eva as eva
from jaxinit._lora import olora as olora
from jaxinit._lora import pissa as pissa
from jaxinit._lora import standard as standard

__all__ = ["eva", "olora", "pissa", "standard"]
