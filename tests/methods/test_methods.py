"""What every method keeps to: the trainer knows none by name."""

import math

import pytest
import torch
from torch import Tensor

from i2c_fast.errors import UserError
from i2c_fast.methods import METHODS, Method, find_method

from .small import batch, method, small_model


@pytest.fixture(params=sorted(METHODS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_terms_are_scalars_in_one_order_with_a_loss_to_minimize(name: str) -> None:
    trained = method(name)
    first = trained(batch())
    trained.after_step(torch.zeros(()))
    second = trained(batch(labels=(1, 1, 1, 1, 0, 0)))
    assert list(first) == list(second) and {"loss", "ce", "accuracy"} <= set(first)
    assert all(term.shape == () and term.isfinite() for term in first.values())
    second["loss"].backward()
    assert all(parameter.grad is not None for group in trained.parameter_groups() for parameter in group.params)


def test_every_trained_parameter_is_in_one_group(name: str) -> None:
    trained = method(name)
    grouped = [id(parameter) for group in trained.parameter_groups() for parameter in group.params]
    assert sorted(grouped) == sorted(id(parameter) for parameter in trained.parameters())


def test_equal_random_states_give_equal_losses(name: str) -> None:
    def loss() -> Tensor:
        torch.manual_seed(3)
        trained = method(name)
        torch.manual_seed(4)
        found: Tensor = trained(batch())["loss"]
        return found

    assert torch.equal(loss(), loss())


def test_the_state_beside_the_model_s_survives_a_round_trip(name: str) -> None:
    first, second = method(name), method(name)
    first(batch())["loss"].backward()
    first.after_step(torch.zeros(()))
    second.load_own_state(first.own_state())
    assert all(torch.equal(value, second.state_dict()[key]) for key, value in first.own_state().items())
    assert not any(key.startswith("model.") for key in first.own_state())


def test_a_closed_method_leaves_the_model_as_it_found_it(name: str) -> None:
    model = small_model()
    names = [key for key, _ in model.named_modules()]
    method(name, model).close()
    assert [key for key, _ in model.named_modules()] == names
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_the_predictor_gives_the_plain_classifiers_maps(name: str) -> None:
    trained = method(name).eval()
    images = batch().images
    with torch.no_grad():
        expected = trained.model.head.class_maps(
            trained.model.head(trained.model.body(trained.model.normalize(images)))
        )
        torch.testing.assert_close(trained.predictor.class_maps(images).maps, expected)


def test_only_bank_and_model_are_state(name: str) -> None:
    assert set(method(name).own_state()) == (
        {f"criterion.{k}" for k in ("centers", "steps", "draws")} if name == "i2c" else set()
    )


def test_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"stage1\.method=cutmx is unknown; did you mean cutmix\?"):
        find_method("cutmx", "stage1.method")


def test_a_method_is_found_once_it_is_defined_and_a_taken_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Method, "registered", dict(METHODS))

    class Mine(Method):
        name = "mine"

    assert Method.registered["mine"] is Mine
    with pytest.raises(ValueError, match="there is a method 'cam' already"):

        class Other(Method):
            name = "cam"


def test_cam_is_cross_entropy(name: str = "cam") -> None:
    trained = method(name).eval()
    terms, given = trained(batch()), batch()
    logits = trained.model(given.images).double()
    by_hand = -logits.log_softmax(1)[torch.arange(6), given.labels].mean()
    assert terms["loss"].item() == pytest.approx(by_hand.item(), rel=1e-5)
    assert terms["accuracy"].item() == pytest.approx((logits.argmax(1) == given.labels).double().mean().item())


def test_i2c_adds_its_weighted_terms_and_moves_centers_once_a_finite_step() -> None:
    trained = method("i2c", sc_weight=0.5, gc_weight=0.25)
    terms = trained(batch())
    assert terms["loss"].item() == pytest.approx(
        (terms["ce"] + 0.5 * terms["sc"] + 0.25 * terms["gc"]).item(), rel=1e-6
    )
    before = trained.own_state()["criterion.centers"].clone()
    trained.after_step(torch.ones(()))
    assert torch.equal(trained.own_state()["criterion.centers"], before)
    trained(batch())
    trained.after_step(torch.zeros(()))
    assert not torch.equal(trained.own_state()["criterion.centers"], before)
    assert trained.own_state()["criterion.steps"].tolist() == [1, 1, 1]


def test_i2c_without_pairs_is_an_error_with_ways_out() -> None:
    with pytest.raises(UserError, match=r"batch\.images=1 gives SC no pair; use batch\.images=2, or i2c\.sc_weight=0"):
        METHODS["i2c"].check(METHODS["i2c"].Options(), 1)
    METHODS["i2c"].check(METHODS["i2c"].Options(sc_weight=0.0), 1)


def test_descriptions_name_the_objective() -> None:
    objective, options = METHODS["i2c"].describe(METHODS["i2c"].Options(k=7))
    assert objective == "cross-entropy + 0.008 SC + 0.001 GC" and "K 7" in options and "squared_l2" in options
    assert math.isclose(METHODS["i2c"].map_threshold(METHODS["i2c"].Options(threshold=0.4)), 0.4)
