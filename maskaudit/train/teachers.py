"""Learning from a trained model: gradients made like the teacher's, or its softened answers.

Sinha et al. 2018, "Gradient Adversarial Training of Neural Networks" (arXiv 1806.08028), section 2.2, algorithm 2,
equation 8; Hinton, Vinyals, Dean 2015, "Distilling the Knowledge in a Neural Network" (arXiv 1503.02531), section 2.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskaudit.errors import InputError, UsageError, describe_error
from maskaudit.loading import load_file
from maskaudit.train.auxiliary import shallower_discriminator
from maskaudit.train.interface import Batch, TrainPlan
from maskaudit.train.masked_gradient import loss_gradient, reverse_gradient

#: What the discriminator answers for a gradient of the student and of the teacher.
STUDENT, TEACHER = 0, 1


class GreatDistillation:
    """(1 − α) · CE(student) + α · the discriminator's confusion: gradients of student and teacher look alike (eq. 8).

    f is a network like the student, but shallower, with leaky ReLU. It classifies gradients of the cross-entropy with
    respect to the input, of single points, as the student's or the teacher's, and the student gets the reversed
    gradient of its own half: −α ∇ CE(f(g_s), student), as line 9 of algorithm 2 has it.
    """

    phases = 1

    def __init__(self, plan: TrainPlan, model: nn.Module) -> None:
        self.alpha = _share(plan)
        self.teacher = load_teacher(plan)
        self.auxiliary = nn.ModuleDict({"f": shallower_discriminator(plan.model)})

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The student's loss plus the discriminator's, the latter reversed on its way into the student."""
        teacher = self.teacher.to(batch.x.device).eval()
        student_logits, ours = loss_gradient(model, batch.x, batch.y)
        _, theirs = loss_gradient(teacher, batch.x, batch.y)
        f = self.auxiliary["f"]
        answers = (f(theirs.detach()), f(reverse_gradient(ours, self.alpha)))
        distinction = batch.x.new_zeros(())
        for logits, origin in zip(answers, (TEACHER, STUDENT), strict=True):
            labels = torch.full_like(batch.y, origin)
            batch.meter.count(logits, labels)
            distinction = distinction + F.cross_entropy(logits, labels)
        return (1 - self.alpha) * F.cross_entropy(student_logits, batch.y) + distinction


class SoftDistillation:
    """(1 − α) · CE(student, y) + α T² · KL(teacher at temperature T ‖ student at T) (Hinton et al. 2015, section 2)."""

    phases = 1

    def __init__(self, plan: TrainPlan, model: nn.Module) -> None:
        self.auxiliary = nn.ModuleDict()
        self.alpha = _share(plan)
        self.teacher = load_teacher(plan)
        self.temperature = plan.temperature

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Supervised loss plus that of the softened answers, a scalar."""
        teacher = self.teacher.to(batch.x.device).eval()
        with torch.no_grad():
            theirs = F.log_softmax(teacher(batch.x) / self.temperature, 1)
        logits = model(batch.x)
        ours = F.log_softmax(logits / self.temperature, 1)
        divergence = F.kl_div(ours, theirs, reduction="batchmean", log_target=True)
        return (1 - self.alpha) * F.cross_entropy(logits, batch.y) + self.alpha * self.temperature**2 * divergence


def load_teacher(plan: TrainPlan) -> nn.Module:
    """The model that `--teacher` names, frozen, checked on the data's shape.

    Raises:
        UsageError: where no teacher is named.
        InputError: for a file that is no model, or one that does not take such points or tell such classes apart.
    """
    source, method = plan.config.teacher, plan.config.method
    if not source:
        raise UsageError(f"{method} learns from a trained model; name it with --teacher FILE.")
    module = load_file(source).module
    if not isinstance(module, nn.Module):
        raise InputError(f"The teacher {source} has no gradients; give a model of PyTorch.")
    try:
        with torch.no_grad():
            answer = module.eval()(torch.zeros(2, *plan.shape))
    except Exception as error:  # whatever the module raises for inputs that are not its own
        raise InputError(f"The teacher {source} does not accept the data: {describe_error(error)}.") from error
    if tuple(answer.shape) != (2, plan.num_classes):
        raise InputError(f"The teacher {source} answers {tuple(answer.shape[1:])}, not {plan.num_classes} classes.")
    return module.requires_grad_(False)


def _share(plan: TrainPlan) -> float:
    if plan.alpha > 1:
        raise UsageError(f"alpha is the teacher's share in {plan.config.method}, at most 1; got {plan.alpha:g}.")
    return plan.alpha
