"""Ways to damage which layer of a model is called on what."""

import copy


def edit_calls(config, draw):
    """Changes what the layers of a model are called on, or their order.

    Args:
        config: A configuration as JSON holds it, changed in place.
        draw: A `random.Random`.
    """
    for _ in range(draw.choice((1, 1, 2, 5))):
        graphs = list(_graphs(config))
        if not graphs:
            return
        draw.choice(_CHANGES)(draw.choice(graphs), draw)


def _graphs(value):
    """Yields the layers of each Functional model."""
    if isinstance(value, dict):
        layers = value.get("layers")
        if isinstance(layers, list) and "input_layers" in value and layers:
            yield layers
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from _graphs(each)


def _tensors(value):
    """Yields where each tensor comes from, to be changed in place."""
    if isinstance(value, dict):
        if isinstance(value.get("keras_history"), list):
            yield value["keras_history"]
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from _tensors(each)


def _calls(layers):
    return [call for layer in layers for call in layer["inbound_nodes"]]


def _permute(layers, draw):
    draw.shuffle(layers)


def _reverse(layers, draw):
    layers.reverse()


def _retarget(layers, draw):
    """Takes a tensor of another layer, of another call, or of none."""
    found = list(_tensors([layer["inbound_nodes"] for layer in layers]))
    if found:
        tensor = draw.choice(found)
        tensor[0] = draw.choice(layers)["name"]
        tensor[1] = draw.choice((0, 0, 0, 1, -1, 9))
        tensor[2] = draw.choice((0, 0, 0, 1, -1, 9))


def _loop(layers, draw):
    """Lets two layers take what the other gives."""
    called = [layer for layer in layers if layer["inbound_nodes"]]
    if called:
        one, other = draw.choice(called), draw.choice(called)
        for layer, giver in ((one, other), (other, one)):
            for tensor in list(_tensors(layer["inbound_nodes"]))[:1]:
                tensor[:] = giver["name"], 0, 0


def _swap_calls(layers, draw):
    one, other = draw.choice(layers), draw.choice(layers)
    calls = one["inbound_nodes"], other["inbound_nodes"]
    other["inbound_nodes"], one["inbound_nodes"] = calls


def _repeat_call(layers, draw):
    calls = _calls(layers)
    if calls:
        layer = draw.choice(layers)
        layer["inbound_nodes"] += [copy.deepcopy(draw.choice(calls))] * 3


def _repeat_layer(layers, draw):
    layers.insert(
        draw.randrange(len(layers) + 1), copy.deepcopy(draw.choice(layers))
    )


def _share(layers, draw):
    for _ in range(2):
        draw.choice(layers)["shared_object_id"] = 7


def _lengthen(layers, draw):
    """Appends a chain, listed in reverse."""
    called = [layer for layer in layers if layer["inbound_nodes"]]
    if called:
        first = draw.choice(called)
        for place in range(draw.choice((3, 30, 1000))):
            layer = copy.deepcopy(first)
            layer["name"] = layer["config"]["name"] = f"chain_{place}"
            for tensor in _tensors(layer["inbound_nodes"]):
                name = f"chain_{place - 1}" if place else first["name"]
                tensor[:] = name, 0, 0
            layers.insert(0, layer)


_CHANGES = (
    _permute,
    _reverse,
    _retarget,
    _loop,
    _swap_calls,
    _repeat_call,
    _repeat_layer,
    _share,
    _lengthen,
)
