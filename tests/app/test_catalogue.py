import pytest

from dynamicrafter_jax.app.catalogue import ModelCatalogue, split_config
from dynamicrafter_jax.errors import UserError


class Loader:
    """Notes what it is asked for, and gives a new thing each time."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, name: str):
        from dynamicrafter_jax.pipeline import ImageToVideo

        self.asked.append(name)
        if name == "broken":
            raise UserError("broken is broken")
        return ImageToVideo.__new__(ImageToVideo)


def test_names_may_bring_a_config():
    assert split_config("model_512") == ("model_512", None)
    assert split_config("a b/model.ckpt,config=i2v_512") == ("a b/model.ckpt", "i2v_512")


def test_models_are_loaded_once_and_the_oldest_forgotten():
    loader = Loader()
    catalogue = ModelCatalogue(["a", "b", "c"], capacity=2, load=loader)
    assert loader.asked == []
    a, b = catalogue.get("a"), catalogue.get("b")
    assert catalogue.get("a") is a and loader.asked == ["a", "b"]
    catalogue.get("c")  # b was not used for longest
    assert catalogue.get("a") is a and loader.asked == ["a", "b", "c"]
    assert catalogue.get("b") is not b and loader.asked == ["a", "b", "c", "b"]


def test_only_models_that_are_allowed_are_loaded():
    loader = Loader()
    catalogue = ModelCatalogue(["demo", "model_512", "demo"], load=loader)
    assert catalogue.names == ["demo", "model_512"]
    for name in ("/etc/passwd", "../model_512", "owner/name", "", "demo,config=i2v_512"):
        with pytest.raises(UserError, match="no such model: choose from demo, model_512"):
            catalogue.get(name)
    assert loader.asked == []


def test_any_model_may_be_allowed_but_no_config_that_is_a_program():
    loader = Loader()
    catalogue = ModelCatalogue(["demo", "mine,config=mine.py"], allow_any=True, load=loader)
    for name in ("owner/name", "model.ckpt,config=i2v_512", "mine,config=mine.py"):
        catalogue.get(name)
    assert loader.asked == ["owner/name", "model.ckpt,config=i2v_512", "mine,config=mine.py"]
    for config in ("evil.py", "/evil.py", "../evil", "", "a b", "~/evil"):
        with pytest.raises(UserError, match="not the name of a packaged config"):
            catalogue.get(f"model.ckpt,config={config}")
    with pytest.raises(UserError, match="no such model"):
        catalogue.get("")
    assert len(loader.asked) == 3


def test_a_model_that_fails_is_tried_again():
    loader = Loader()
    catalogue = ModelCatalogue(["broken"], load=loader)
    for _ in range(2):
        with pytest.raises(UserError, match="broken is broken"):
            catalogue.get("broken")
    assert loader.asked == ["broken", "broken"]
