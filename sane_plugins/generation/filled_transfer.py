"""A transfer whose open tensors a SANE fills: what no prompt has is decoded in the context of what one lent.

The method: docs/explanation/sane.md, section 19.1.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn

from sane_plugins.autoencoder import SANE, fill
from sane_plugins.grafting import PromptNetwork, TransferMethod, Transplant, find_classifier
from sane_plugins.progress import Report, silent
from sane_plugins.tasks import Task
from sane_plugins.weights import RUNNING, from_module, load_into

FILLED = "filled"
"""The label of a tensor that a SANE decoded in the context of others."""


@dataclass(frozen=True, eq=False)
class FilledTransfer:
    """Does what another method does, and fills the tensors that it leaves as they were drawn.

    The classifier and running statistics are left: they are fitted and measured by the caller. `sane` must
    have learnt to fill. Offer it with the hook `sane_transfers`; it is not among our own methods, as it was
    not ahead of a draw of the same scale (docs/results.md).
    """

    method: TransferMethod
    sane: SANE

    def __call__(
        self,
        target: nn.Module,
        prompt: PromptNetwork,
        task: Task,
        rng: torch.Generator,
        report: Report = silent,
    ) -> Transplant:
        """Write weights into a freshly initialised target, in place; see `TransferMethod`."""
        written = self.method(target, prompt, task, rng, report)
        graph = from_module(target)
        classifier = _classifier_keys(target, task)
        open_values = {
            param.key: torch.ones(param.shape, dtype=torch.bool, device="cpu")
            for param in graph.params
            if param.key not in written.origins
            and param.key not in classifier
            and param.role not in RUNNING
        }
        if not written.origins or not open_values:
            note = "nothing was left open" if written.origins else "there was no context to fill in"
            return replace(written, notes=(*written.notes, note))
        load_into(target, fill(self.sane, graph, open_values))
        return replace(
            written,
            origins={**written.origins, **dict.fromkeys(sorted(open_values), FILLED)},
            notes=(*written.notes, f"{len(open_values)} tensors were filled"),
        )


def _classifier_keys(target: nn.Module, task: Task) -> set[str]:
    """Return the names of the classifier's tensors, as far as one is found."""
    was_training = target.training
    with torch.no_grad():
        layer = find_classifier(target, task.x_train[:2])
    target.train(was_training)
    own = {id(x) for x in layer.parameters()} if layer is not None else set[int]()
    return {key for key, x in target.named_parameters() if id(x) in own}
