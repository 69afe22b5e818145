"""A method that layers share is replaced for chosen layers, and restored as it was."""

from __future__ import annotations

from typing import Any

from swtrace.series.interception import Interception


class Method:
    """A quant method, which serves many layers."""

    def apply(self, layer: str, x: int) -> str:
        """Return which layer was applied to what."""
        return f"{layer} applied to {x}"


def install(method: Any, layer: str) -> Interception:
    """Replace ``apply`` for one layer by what calls the original."""

    def substitute(_layer: str, x: int) -> str:
        return f"waited, {interception.original(layer, x)}"

    interception = Interception.install(method, "apply", layer, substitute)
    return interception


def test_other_layers_get_the_original() -> None:
    """Only the chosen layers' calls are replaced, and each layer's substitute is called once per call."""
    method = Method()
    for layer in ("first", "second"):
        install(method, layer)
    assert method.apply("first", 1) == "waited, first applied to 1"
    assert method.apply("second", x=2) == "waited, second applied to 2"
    assert method.apply("outsider", 3) == "outsider applied to 3"


def test_the_holder_is_restored_after_its_last_layer() -> None:
    """A method of the class is found there again, and one of the object itself is put back."""
    of_the_class, of_its_own = Method(), Method()
    own: Any = lambda layer, x: f"{layer} quantised {x}"  # noqa: E731 (a function of the object)
    of_its_own.apply = own  # type: ignore[method-assign]
    for method in (of_the_class, of_its_own):
        first, second = install(method, "first"), install(method, "second")
        first.remove("first")
        assert method.apply("second", 1).startswith("waited, ")
        second.remove("second")
    assert "apply" not in vars(of_the_class)
    assert vars(of_its_own)["apply"] is own


def test_a_later_replacement_is_left_in_place() -> None:
    """What another library put over the replacement stays, and calls through to the original."""
    method = Method()
    interception = install(method, "first")
    method.apply = lambda layer, x: f"adapted: {interception(layer, x)}"  # type: ignore[method-assign]
    interception.remove("first")
    assert method.apply("first", 1) == "adapted: first applied to 1"
