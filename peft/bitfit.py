"""BitFit: only the biases train (Ben Zaken et al. 2021, arXiv:2106.10199)."""

from dataclasses import dataclass

from config import Run
from model.transformer import Transformer
from peft.attach import train_head
from peft.registry import method
from peft.targets import block_of, own_modules
from utils.errors import UserError


@method("bitfit")
@dataclass(frozen=True)
class BitFit:
    """Trains every parameter named "bias": of Linear layers, norms and the head.

    With train_head that is the published BitFit, which trains the classifier in full. Without it, the weights of a new
    head stay as they were drawn, as in the RoBERTa notes, where RTE therefore stays at chance.
    """

    train_head: bool = True

    @classmethod
    def from_run(cls, name: str, run: Run) -> "BitFit":
        return cls(train_head=run.train_head == "yes")

    def attach(self, model: Transformer) -> None:
        in_blocks = [module for path, module in own_modules(model) if block_of(path) is not None]
        if not any(getattr(module, "bias", None) is not None for module in in_blocks):
            kind = type(model).__name__
            raise UserError(f"bitfit trains biases, and the blocks of this {kind} have none; choose lora or last_block")
        for name, parameter in model.named_parameters():
            if name.split(".")[-1] == "bias":
                parameter.requires_grad_(True)
        train_head(model, self.train_head)
