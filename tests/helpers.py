"""What tests call: compiling, and comparing all values bit for bit."""


def compile_model(model, optimizer="adam", **kwargs):
    """Compiles for classification."""
    model.compile(
        optimizer,
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
        **kwargs,
    )


def all_values(model):
    """Returns the value of every variable of a model."""
    return [variable.numpy() for variable in model.variables]


def assert_same_values(before, after):
    """Asserts that no variable changed, bit for bit."""
    assert len(before) == len(after)
    for index, (old, new) in enumerate(zip(before, after)):
        assert old.tobytes() == new.tobytes(), f"variable {index} changed"
