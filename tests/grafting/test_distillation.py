import math

import pytest
import torch
from torch.nn import functional

from weight_evolution import distillation_loss


def by_formula(student, teachers, tau):
    """In loops over Python numbers."""
    total = 0.0
    for n, row in enumerate(student.tolist()):
        normalizer = sum(math.exp(value / tau) for value in row)
        for k, value in enumerate(row):
            pbar = 0.0
            for teacher in teachers:
                logits = teacher[n].tolist()
                pbar += math.exp(logits[k] / tau) / sum(math.exp(v / tau) for v in logits) / len(teachers)
            total -= pbar * math.log(math.exp(value / tau) / normalizer)
    return tau**2 * total / len(student)


def logits(seed, shape=(5, 7), dtype=torch.float64):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed)) * 3


@pytest.mark.parametrize("teachers", [1, 3])
@pytest.mark.parametrize("tau", [2.0, 0.7])
def test_formula(teachers, tau):
    student, all_teachers = logits(0), [logits(seed + 1) for seed in range(teachers)]
    expected = by_formula(student, all_teachers, tau)
    assert float(distillation_loss(student, all_teachers, tau)) == pytest.approx(expected, rel=1e-12)
    if teachers == 1:
        assert float(distillation_loss(student, all_teachers[0], tau)) == pytest.approx(expected, rel=1e-12)
    if tau == 2.0:
        assert float(distillation_loss(student, all_teachers)) == pytest.approx(expected, rel=1e-12)


def test_is_least_for_the_teacher_itself_where_it_is_the_entropy():
    teacher = logits(1)
    p = torch.softmax(teacher / 2, 1)
    least = distillation_loss(teacher, teacher)
    torch.testing.assert_close(least, 4 * torch.special.entr(p).sum(1).mean())
    assert distillation_loss(teacher + 0.1 * logits(2), teacher) > least


def test_gradients():
    student, teacher = logits(0).requires_grad_(), logits(1).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: distillation_loss(s, [teacher, logits(2)]), student)
    distillation_loss(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad is not None


def test_half_precision_is_computed_in_float32():
    student, teacher = logits(0).bfloat16().requires_grad_(), logits(1).bfloat16()
    loss = distillation_loss(student, teacher)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, distillation_loss(student.float(), teacher.float()))
    loss.backward()
    assert student.grad.dtype == torch.bfloat16


def test_extreme_logits_are_finite():
    student = torch.tensor([[1000.0, -1000.0]])
    expected = 4 * 1000 * 0.5  # half of the teacher's probability on a log-probability of -1000
    assert float(distillation_loss(student, torch.zeros(1, 2))) == pytest.approx(expected)
    assert functional.cross_entropy(student, torch.tensor([0])) == 0


@pytest.mark.parametrize(
    ("student", "teacher", "temperature", "error", "message"),
    [
        (logits(0), logits(1), 0.0, ValueError, "temperature must be a positive number"),
        (logits(0), logits(1), float("nan"), ValueError, "temperature"),
        (logits(0), logits(1), True, TypeError, "temperature must be a number"),
        (logits(0), logits(1, (5, 6)), 2.0, ValueError, "teacher_logits must have the shape of student_logits, (5, 7)"),
        (logits(0), [logits(1), logits(1, (1, 7))], 2.0, ValueError, "teacher_logits[1] must have the shape"),
        (logits(0), [], 2.0, ValueError, "teacher_logits is empty"),
        (logits(0), 3, 2.0, TypeError, "teacher_logits must be a tensor or a list"),
        (logits(0), [3], 2.0, TypeError, "teacher_logits must be a tensor, got int"),
        (logits(0).long(), logits(1), 2.0, TypeError, "student_logits must be a floating-point tensor"),
        (logits(0, (7,)), logits(1, (7,)), 2.0, ValueError, "student_logits must be [N, classes]"),
        (logits(0, (0, 7)), logits(1, (0, 7)), 2.0, ValueError, "not empty"),
        (logits(0), logits(1).to("meta"), 2.0, ValueError, "teacher_logits is on meta"),
    ],
)
def test_bad_arguments(student, teacher, temperature, error, message):
    with pytest.raises(error) as raised:
        distillation_loss(student, teacher, temperature)
    assert message in str(raised.value)
