"""Parameter-efficient fine-tuning. Four verbs that work alike for every method:

    attach(model, LoRA(rank=16, alpha=16))   freeze the base, add or pick what trains       (in place)
    merge(model)                             fold LoRA, DoRA, VeRA, HiRA, IA3 into the base (in place)
    export(model)                            the trained tensors by name
    restore(model, tensors)                  put exported tensors back into an attached model

A method is one file of this package: a frozen dataclass decorated with `@method("name", ...)`, where the names are what
`--trainable_layers` accepts, with `from_run(name, run)` and `attach(model)`. Drop a file here and it is found. Names
joined with + attach one after the other, so `attach` of a method only ever adds to what trains.
"""

from peft.adapter import Adapter
from peft.attach import attach, export, fill, fold, merge, restore, train_head
from peft.bitfit import BitFit
from peft.bypass import Bypass
from peft.dora import DoRA
from peft.freeze import Freeze, FreezeBlocks
from peft.hira import HiRA
from peft.huggingface.read import FromPeft
from peft.ia3 import IA3
from peft.lora import LoRA
from peft.prefix import PrefixTuning
from peft.prompt import PromptTuning
from peft.registry import METHODS, Joined, find_methods, method, method_of
from peft.sharing import Adapters, share
from peft.vera import VeRA

__all__ = [
    "IA3",
    "METHODS",
    "Adapter",
    "Adapters",
    "BitFit",
    "Bypass",
    "DoRA",
    "Freeze",
    "FreezeBlocks",
    "FromPeft",
    "HiRA",
    "Joined",
    "LoRA",
    "PrefixTuning",
    "PromptTuning",
    "VeRA",
    "attach",
    "export",
    "fill",
    "find_methods",
    "fold",
    "merge",
    "method",
    "method_of",
    "restore",
    "share",
    "train_head",
]
