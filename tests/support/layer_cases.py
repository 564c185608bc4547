"""Small models that cover the layers and their options; `keras` is Keras 3 or tf-keras.

Each case is (name, function of keras that builds the model). What a Keras lacks is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

Build = Callable[[Any], Any]

IMAGE, SERIES, ROW = (7, 6, 3), (9, 3), (6,)
FIRST = {"data_format": "channels_first"}


def one(name: str, shape: tuple[int, ...], /, *args: Any, **kwargs: Any) -> tuple[str, Build]:
    """A model of one layer on an input of this shape."""
    options = [str(a) for a in args] + [f"{k}={v}" for k, v in kwargs.items()]
    label = f"{name} {' '.join(options)} on {shape}".replace("  ", " ")

    def build(keras: Any) -> Any:
        inputs = keras.Input(shape)
        return keras.Model(inputs, getattr(keras.layers, name)(*args, **kwargs)(inputs))

    return label, build


def chain(label: str, shape: tuple[int, ...], *layers: tuple) -> tuple[str, Build]:
    """A Sequential model of (class name, kwargs) pairs."""

    def build(keras: Any) -> Any:
        return keras.Sequential(
            [keras.Input(shape)]
            + [getattr(keras.layers, name)(**kwargs) for name, kwargs in layers]
        )

    return label, build


def graph(label: str, wire: Callable[[Any, Any], Any]) -> tuple[str, Build]:
    """A functional model: wire(keras, keras.layers) gives (inputs, outputs)."""
    return label, lambda keras: keras.Model(*wire(keras, keras.layers))


def all_cases() -> Iterator[tuple[str, Build]]:
    yield from core()
    yield from activations()
    yield from convolutions()
    yield from pooling()
    yield from normalization()
    yield from reshaping()
    yield from merging()
    yield from orders()
    yield from graphs()


def core() -> Iterator[tuple[str, Build]]:
    yield one("Dense", ROW, 4, use_bias=False)
    yield one("Dense", SERIES, 4, activation="relu")
    yield one("Dense", IMAGE, 4)
    for name, kwargs in {
        "Dropout": {"rate": 0.5},
        "SpatialDropout2D": {"rate": 0.5},
        "GaussianNoise": {"stddev": 0.5},
        "GaussianDropout": {"rate": 0.5},
        "RandomFlip": {},
        "RandomRotation": {"factor": 0.2},
        "RandomZoom": {"height_factor": 0.2},
        "RandomTranslation": {"height_factor": 0.2, "width_factor": 0.2},
        "RandomContrast": {"factor": 0.2},
        "RandomBrightness": {"factor": 0.2},
        "ActivityRegularization": {"l1": 0.1},
    }.items():
        yield one(name, IMAGE, **kwargs)


FUNCTIONS = [
    "linear", "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "sigmoid", "hard_sigmoid",
    "tanh", "hard_tanh", "softplus", "softsign", "exponential", "swish", "silu", "gelu", "mish",
    "softmax", "log_softmax", "hard_silu",
]  # fmt: skip


def activations() -> Iterator[tuple[str, Build]]:
    for name in FUNCTIONS:
        yield one("Activation", ROW, name)
    yield one("Dense", ROW, 4, activation="selu")
    yield one("Conv2D", IMAGE, 2, 3, activation="softmax")
    for options in (
        {"max_value": 0.5},
        {"negative_slope": 0.1},
        {"max_value": 0.5, "negative_slope": 0.1},
        {"threshold": 0.2},
        {"threshold": 0.2, "max_value": 0.6},
        {"threshold": 0.2, "negative_slope": 0.3},
        {"threshold": 0.2, "negative_slope": 0.3, "max_value": 0.6},
    ):
        yield one("ReLU", ROW, **options)
    yield one("LeakyReLU", ROW)
    yield one("ELU", ROW, alpha=0.7)
    yield one("ThresholdedReLU", ROW, theta=0.3)
    yield one("Softmax", IMAGE, axis=2)
    yield one("PReLU", IMAGE)
    yield one("PReLU", IMAGE, shared_axes=[1, 2])


def convolutions() -> Iterator[tuple[str, Build]]:
    for padding, strides in product(("valid", "same"), (1, 2, 3)):
        yield one("Conv2D", IMAGE, 2, (3, 2), padding=padding, strides=strides)
    for padding in ("valid", "same"):
        yield one("Conv2D", IMAGE, 2, 3, padding=padding, dilation_rate=2)
        yield one("DepthwiseConv2D", IMAGE, 3, padding=padding, depth_multiplier=2)
        yield one("DepthwiseConv2D", IMAGE, (2, 3), padding=padding, strides=2)
        yield one("SeparableConv2D", IMAGE, 4, 3, padding=padding, depth_multiplier=2)
        yield one("SeparableConv2D", IMAGE, 4, 3, padding=padding, strides=2, activation="relu")
        yield one("Conv1D", SERIES, 2, 3, padding=padding, strides=2)
        yield one("SeparableConv1D", SERIES, 2, 3, padding=padding, strides=2)
        yield one("DepthwiseConv1D", SERIES, 3, padding=padding)
    yield one("Conv2D", IMAGE, 2, 1, use_bias=False)
    yield one("Conv2D", (5, 5, 4), 6, 3, groups=2)
    yield one("Conv1D", SERIES, 2, 3, padding="causal", dilation_rate=2)
    yield one("SeparableConv2D", IMAGE, 4, 3, use_bias=False, dilation_rate=2)
    for padding, size, strides in product(("valid", "same"), (1, 2, 3, 4), (1, 2, 3)):
        yield one("Conv2DTranspose", (4, 3, 2), 2, size, padding=padding, strides=strides)
    yield one("Conv2DTranspose", (4, 3, 2), 2, 3, padding="same", strides=2, output_padding=1)
    yield one("Conv2DTranspose", (4, 3, 2), 2, 3, padding="valid", strides=2, output_padding=1)
    yield one("Conv2DTranspose", (4, 3, 2), 2, (3, 2), padding="same", use_bias=False)
    yield one("Conv1DTranspose", SERIES, 2, 3, padding="same", strides=2)
    yield one("Conv2D", (3, 7, 6), 2, 3, padding="same", strides=2, **FIRST)
    yield one("SeparableConv2D", (3, 7, 6), 4, 3, **FIRST)
    yield one("DepthwiseConv2D", (3, 7, 6), 3, **FIRST)
    yield one("Conv2DTranspose", (2, 4, 3), 2, 3, padding="same", strides=2, **FIRST)


def pooling() -> Iterator[tuple[str, Build]]:
    for kind, padding in product(("Max", "Average"), ("valid", "same")):
        for size, strides in ((2, None), (3, 1), (3, 2), ((2, 3), (1, 2)), (4, 3)):
            yield one(f"{kind}Pooling2D", IMAGE, size, strides=strides, padding=padding)
        yield one(f"{kind}Pooling1D", SERIES, 2, padding=padding)
        yield one(f"{kind}Pooling1D", SERIES, 3, strides=2, padding=padding)
        yield one(f"{kind}Pooling2D", (3, 7, 6), 3, strides=2, padding=padding, **FIRST)
    for kind in ("Max", "Average"):
        for keepdims in (False, True):
            yield one(f"Global{kind}Pooling2D", IMAGE, keepdims=keepdims)
            yield one(f"Global{kind}Pooling1D", SERIES, keepdims=keepdims)
        yield one(f"Global{kind}Pooling2D", (3, 7, 6), **FIRST)
        yield one(f"Adaptive{kind}Pooling2D", (8, 6, 3), (2, 3))
        yield one(f"Adaptive{kind}Pooling2D", (6, 6, 2), 3)
        yield one(f"Adaptive{kind}Pooling2D", (3, 8, 6), (4, 1), **FIRST)
        yield one(f"Adaptive{kind}Pooling1D", SERIES, 3)


def normalization() -> Iterator[tuple[str, Build]]:
    for axis, shape in ((-1, IMAGE), (1, IMAGE), (2, IMAGE), (-1, ROW), (-1, SERIES), (1, SERIES)):
        yield one("BatchNormalization", shape, axis=axis)
    yield one("BatchNormalization", IMAGE, center=False, epsilon=0.01)
    yield one("BatchNormalization", IMAGE, scale=False)
    yield one("BatchNormalization", IMAGE, scale=False, center=False)
    yield one("Normalization", ROW, mean=[0.1, 0.2, 0.3, 0.4, 0.5, 0.6], variance=[2.0] * 6)
    yield one("Normalization", IMAGE, axis=None, mean=0.5, variance=0.2)
    yield one("Normalization", IMAGE)
    yield one("Normalization", IMAGE, axis=(1, 3))
    yield one("Normalization", ROW, invert=True)
    yield one("Rescaling", IMAGE, 2.5, offset=-1.0)
    yield one("Rescaling", IMAGE, [1.0, 2.0, 3.0], offset=[0.0, 1.0, 2.0])


def reshaping() -> Iterator[tuple[str, Build]]:
    yield one("Flatten", IMAGE)
    yield one("Flatten", (3, 7, 6), **FIRST)
    yield one("Reshape", ROW, (2, 3))
    yield one("Reshape", IMAGE, (3, -1))
    yield one("Reshape", IMAGE, (126,))
    yield one("Permute", IMAGE, (3, 1, 2))
    yield one("Permute", IMAGE, (2, 1, 3))
    yield one("RepeatVector", ROW, 3)
    yield one("ZeroPadding1D", SERIES, (1, 2))
    yield one("ZeroPadding2D", IMAGE, ((1, 2), (3, 0)))
    yield one("ZeroPadding2D", (3, 7, 6), (1, 2), **FIRST)
    yield one("Cropping1D", SERIES, (1, 2))
    yield one("Cropping2D", IMAGE, ((1, 2), (3, 0)))
    yield one("Cropping2D", (3, 7, 6), 1, **FIRST)
    yield one("CenterCrop", IMAGE, 4, 3)
    yield one("UpSampling1D", SERIES, 3)
    yield one("UpSampling2D", IMAGE, (2, 3))
    yield one("UpSampling2D", IMAGE, (2, 3), interpolation="bilinear")
    yield one("UpSampling2D", (3, 7, 6), 2, **FIRST)
    for size in ((14, 12), (5, 9), (3, 3), (10, 4)):
        for interpolation in ("nearest", "bilinear"):
            yield one("Resizing", IMAGE, *size, interpolation=interpolation)


def merging() -> Iterator[tuple[str, Build]]:
    def two(name: str, first: tuple, second: tuple, **kwargs: Any) -> tuple[str, Build]:
        def wire(keras: Any, layers: Any) -> Any:
            inputs = [keras.Input(first), keras.Input(second)]
            return inputs, getattr(layers, name)(**kwargs)(inputs)

        options = " ".join(f"{k}={v}" for k, v in kwargs.items())
        return graph(f"{name} {options} of {first} and {second}".replace("  ", " "), wire)

    for name in ("Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum"):
        yield two(name, IMAGE, IMAGE)
    yield two("Multiply", IMAGE, (1, 1, 3))
    yield two("Add", IMAGE, (3,))
    yield two("Concatenate", IMAGE, IMAGE)
    yield two("Concatenate", IMAGE, (2, 6, 3), axis=1)
    yield two("Concatenate", ROW, (2,))


def orders() -> Iterator[tuple[str, Build]]:
    """What follows a convolution must see Keras' order of elements."""
    conv = ("Conv2D", {"filters": 2, "kernel_size": 2})
    flat = ("Flatten", {})
    dense = ("Dense", {"units": 3})
    norm = ("BatchNormalization", {})
    yield chain("convolution, flatten", IMAGE, conv, flat)
    yield chain("convolution, flatten, dense", IMAGE, conv, flat, dense)
    yield chain("convolution, flatten, softmax", IMAGE, conv, flat, ("Softmax", {}))
    yield chain("convolution, flatten, sigmoid", IMAGE, conv, flat,
                ("Activation", {"activation": "sigmoid"}))  # fmt: skip
    yield chain("convolution, flatten, normalization, dense", IMAGE, conv, flat, norm, dense)
    yield chain("convolution, flatten, normalization", IMAGE, conv, flat, norm)
    yield chain("convolution, flatten, prelu", IMAGE, conv, flat, ("PReLU", {}))
    yield chain("convolution, flatten, repeat", IMAGE, conv, flat, ("RepeatVector", {"n": 2}))
    yield chain("convolution, flatten, reshape, convolution", IMAGE, conv, flat,
                ("Reshape", {"target_shape": (6, 5, 2)}), conv)  # fmt: skip
    yield chain("convolution, permute, flatten, dense", IMAGE, conv,
                ("Permute", {"dims": (2, 3, 1)}), flat, dense)  # fmt: skip
    yield chain("convolution, reshape, dense", IMAGE, conv,
                ("Reshape", {"target_shape": (30, 2)}), dense)  # fmt: skip
    yield chain("convolution, reshape flat, dense", IMAGE, conv,
                ("Reshape", {"target_shape": (-1,)}), dense)  # fmt: skip
    yield chain("convolution, dense, convolution", IMAGE, conv, dense, conv)
    yield chain("convolution, padding, cropping", IMAGE, conv,
                ("ZeroPadding2D", {"padding": ((1, 0), (2, 1))}),
                ("Cropping2D", {"cropping": ((0, 2), (1, 0))}))  # fmt: skip
    yield chain("convolution, prelu", IMAGE, conv, ("PReLU", {}))
    yield chain("convolution, rescaling", IMAGE, conv, ("Rescaling", {"scale": [1.0, 2.0]}))
    yield chain("convolution, normalization of rows", IMAGE, conv,
                ("BatchNormalization", {"axis": 1}))  # fmt: skip
    yield chain("series: convolution, flatten, dense", SERIES,
                ("Conv1D", {"filters": 2, "kernel_size": 2}), flat, dense)  # fmt: skip
    yield chain("channels first: convolution, flatten, dense", (3, 7, 6),
                ("Conv2D", {"filters": 2, "kernel_size": 2, **FIRST}),
                ("Flatten", FIRST), dense)  # fmt: skip


# Several layers, wired as functional models: (inputs, outputs) of each.


def flattened_branches(keras: Any, layers: Any) -> Any:
    x = keras.Input(IMAGE)
    a = layers.Flatten()(layers.Conv2D(2, 2)(x))
    b = layers.Flatten()(layers.Conv2D(3, 3)(x))
    joined = layers.Concatenate()([a, b])
    return x, layers.Dense(4)(layers.BatchNormalization()(joined))


def joined_output(keras: Any, layers: Any) -> Any:
    x = keras.Input(IMAGE)
    a = layers.Flatten()(layers.Conv2D(2, 2)(x))
    b = layers.Flatten()(x)
    return x, layers.Concatenate()([a, b])


def added_flat(keras: Any, layers: Any) -> Any:
    x = keras.Input(IMAGE)
    a = layers.Flatten()(layers.Conv2D(3, 1)(x))
    return x, layers.Dense(3)(layers.Add()([a, layers.Flatten()(x)]))


def several(keras: Any, layers: Any) -> Any:
    x, y = keras.Input(IMAGE), keras.Input(ROW)
    a = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3, activation="relu")(x))
    joined = layers.Concatenate()([a, layers.Dense(5)(y)])
    first = layers.Dense(3, activation="softmax", name="classes")(joined)
    return [x, y], [first, layers.Dense(1, name="score")(joined)]


def shared(keras: Any, layers: Any) -> Any:
    x, y = keras.Input(ROW), keras.Input(ROW)
    dense = layers.Dense(4, activation="tanh")
    return [x, y], layers.Subtract()([dense(x), dense(y)])


def residual(keras: Any, layers: Any) -> Any:
    x = keras.Input(IMAGE)
    a = layers.Conv2D(3, 3, padding="same", use_bias=False)(x)
    a = layers.ReLU()(layers.BatchNormalization()(a))
    a = layers.Add()([x, a])
    gate = layers.GlobalAveragePooling2D(keepdims=True)(a)
    gate = layers.Conv2D(3, 1, activation="hard_sigmoid")(gate)
    return x, layers.Multiply()([a, gate])


def nested(keras: Any, layers: Any) -> Any:
    inner_in = keras.Input(ROW)
    hidden = layers.BatchNormalization()(layers.Dense(4)(inner_in))
    inner = keras.Model(inner_in, [layers.Dense(3)(hidden), hidden], name="inner")
    tower = keras.Sequential(
        [keras.Input(ROW), layers.Dense(6), layers.BatchNormalization()], name="tower"
    )
    x = keras.Input(ROW)
    a, b = inner(tower(tower(x)))
    c, _ = inner(x)
    return x, [layers.Add()([a, c]), b]


def open_sigmoid(keras: Any, layers: Any) -> Any:
    x = keras.Input(IMAGE)
    return x, layers.Conv2D(2, 3, activation="sigmoid")(x)


def input_is_output(keras: Any, layers: Any) -> Any:
    x = keras.Input(ROW)
    y = layers.Dense(2)(x)
    return x, [y, layers.Activation("relu")(y)]


def graphs() -> Iterator[tuple[str, Build]]:
    for wire in (
        flattened_branches, joined_output, added_flat, several, shared, residual, nested,
        open_sigmoid, input_is_output,
    ):  # fmt: skip
        yield graph(wire.__name__.replace("_", " "), wire)
