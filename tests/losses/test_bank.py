"""The bank of centers: when it moves, what it keeps, who may train it."""

import pytest
import torch
from torch import Tensor, nn

from i2c_fast import InterImageLoss

from .batches import CHANNELS, CLASSES, Oracle, batch, make, same, state


def test_the_loss_is_against_the_centers_before_their_update() -> None:
    loss = make()
    before = loss.centers.clone()
    terms = loss(*batch())
    assert torch.equal(loss.centers, before)
    again = make()(*batch())
    assert torch.equal(terms.gc, again.gc)


def test_evaluation_changes_nothing() -> None:
    loss = make().eval()
    before = state(loss)
    first, second = loss(*batch()), loss(*batch())
    loss.commit()
    assert same(state(loss), before)
    assert torch.equal(first.sc, second.sc)
    assert torch.equal(first.gc, second.gc)


def test_evaluation_between_steps_neither_commits_nor_forgets_the_pending_update() -> None:
    loss, undisturbed = make(), make()
    for each in (loss, undisturbed):
        each(*batch())
    before = state(loss)
    loss.eval()(*batch(1))
    assert same(state(loss), before)
    loss.train().commit()
    undisturbed.commit()
    assert same(state(loss), state(undisturbed))


def test_auto_commit_happens_at_the_next_forward() -> None:
    loss, by_hand = make(), make(auto_commit=False)
    for step in range(3):
        terms, expected = loss(*batch(step)), by_hand(*batch(step))
        by_hand.commit()
        assert torch.equal(terms.sc, expected.sc)
        assert torch.equal(terms.gc, expected.gc)
        assert loss.draws.tolist() == [7, step]
    loss.commit()
    assert same(state(loss), state(by_hand))


@pytest.mark.parametrize("nested", [False, True])
def test_auto_commit_happens_in_state_dict(nested: bool) -> None:
    loss = make()
    module, prefix = (nn.ModuleDict({"terms": loss}), "terms.") if nested else (loss, "")
    loss(*batch())
    saved = module.state_dict()
    assert set(saved) == {prefix + name for name in ("centers", "steps", "draws")}
    assert saved[prefix + "steps"].tolist() == [1, 1, 0, 1, 0]
    assert saved[prefix + "draws"].tolist() == [7, 1]
    module.state_dict()  # nothing is pending any more
    assert loss.draws.tolist() == [7, 1]


def test_a_loop_that_commits_itself_is_not_committed_for() -> None:
    loss = make(auto_commit=False)
    before = state(loss)
    loss(*batch())
    assert same(loss.state_dict(), before)
    with pytest.raises(RuntimeError, match=r"auto_commit=False: call commit\(\) after the optimizer step"):
        loss(*batch(1))
    loss.commit()
    loss(*batch(1))


def test_commit_without_a_forward_does_nothing() -> None:
    loss = make()
    before = state(loss)
    loss.commit()
    assert same(state(loss), before)


def test_commit_happens_once() -> None:
    loss = make()
    loss(*batch())
    loss.commit()
    after = state(loss)
    loss.commit()
    assert same(state(loss), after)


@pytest.mark.parametrize("flag", [torch.tensor(1.0), torch.tensor([1.0]), torch.tensor(True)])
def test_a_skipped_step_leaves_the_centers_and_advances_the_draw(flag: Tensor) -> None:
    loss = make(auto_commit=False)
    before = state(loss)
    loss(*batch())
    loss.commit(found_inf=flag)
    assert torch.equal(loss.centers, before["centers"])
    assert loss.steps.tolist() == [0] * CLASSES
    assert loss.draws.tolist() == [7, 1]


def test_a_step_found_finite_commits_as_usual() -> None:
    loss, plain = make(auto_commit=False), make(auto_commit=False)
    for each in (loss, plain):
        each(*batch())
    loss.commit(found_inf=torch.tensor(0.0))
    plain.commit()
    assert same(state(loss), state(plain))


def test_state_round_trip_continues_to_the_bit() -> None:
    loss = make()
    for step in range(3):
        loss(*batch(step))
    other = make(seed=99)
    other.load_state_dict({name: value.clone() for name, value in loss.state_dict().items()})
    for step in range(3, 6):
        terms, expected = other(*batch(step)), loss(*batch(step))
        assert torch.equal(terms.sc, expected.sc)
        assert torch.equal(terms.gc, expected.gc)
    assert same(other.state_dict(), loss.state_dict())


@pytest.mark.parametrize("nested", [False, True])
def test_loading_a_state_drops_the_update_pending_from_the_old_one(nested: bool) -> None:
    loss = make()
    module = nn.ModuleDict({"terms": loss}) if nested else loss
    saved = {name: value.clone() for name, value in module.state_dict().items()}
    expected = loss(*batch())
    module.load_state_dict(saved)
    terms = loss(*batch())
    assert torch.equal(terms.sc, expected.sc)
    assert torch.equal(terms.gc, expected.gc)
    assert loss.draws.tolist() == [7, 0]


def test_one_seed_gives_one_training() -> None:
    first, second, other = make(), make(), make(seed=8)
    for step in range(3):
        a, b, c = (loss(*batch(step)) for loss in (first, second, other))
        assert torch.equal(a.sc, b.sc)
        assert torch.equal(a.gc, b.gc)
        assert not torch.equal(a.sc, c.sc)
    assert same(first.state_dict(), second.state_dict())


def test_construction_leaves_the_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    make()
    assert torch.equal(torch.get_rng_state(), before)


def test_initial_centers_are_standard_normal() -> None:
    centers = InterImageLoss(200, 100).centers
    assert centers.mean().item() == pytest.approx(0, abs=0.03)  # 4 standard errors of 20 000 values
    assert centers.std().item() == pytest.approx(1, abs=0.03)


def test_draws_differ_between_steps() -> None:
    loss = InterImageLoss(CLASSES, CHANNELS, k=1, threshold=0.0)
    features, maps, labels = batch()
    terms = [loss(features, maps, labels).sc.item() for _ in range(5)]
    assert len(set(terms)) == 5


def test_momentum_centers_are_buffers() -> None:
    loss = make()
    assert list(loss.parameters()) == []
    assert loss.centers.dtype == torch.float32
    assert (loss.steps.dtype, loss.draws.dtype) == (torch.int64, torch.int64)


def test_backprop_centers_are_a_parameter_that_only_the_optimizer_moves() -> None:
    loss = make(center_update="backprop")
    features, maps, labels = batch()
    before = loss.centers.detach().clone()
    loss(features, maps, labels).gc.backward()
    loss.commit()
    assert [name for name, _ in loss.named_parameters()] == ["centers"]
    assert loss.centers.grad is not None
    assert loss.centers.grad.ne(0).any(1).tolist() == [True, True, False, True, False]
    assert torch.equal(loss.centers.detach(), before)
    assert loss.steps.tolist() == [0] * CLASSES
    assert loss.draws.tolist() == [7, 1]
    torch.optim.SGD(loss.parameters(), lr=0.1).step()
    loss(features, maps, labels)
    torch.testing.assert_close(loss.centers.detach(), before - 0.1 * loss.centers.grad)


def test_backprop_gradient_equals_the_loop() -> None:
    loss = make(center_update="backprop")
    features, maps, labels = batch()
    loss(features, maps, labels).gc.backward()
    oracle = Oracle(loss)
    oracle.centers.requires_grad_()
    oracle.terms(features, maps, labels)[1].backward()
    assert loss.centers.grad is not None and oracle.centers.grad is not None
    torch.testing.assert_close(loss.centers.grad.double(), oracle.centers.grad, rtol=1e-5, atol=1e-6)
