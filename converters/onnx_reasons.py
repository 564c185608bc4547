"""Why an ONNX operator is not served, and what a user can do about it."""

from __future__ import annotations

_STATISTICS = (
    "it scales each sample by statistics of its own, which cannot be computed on shares; use "
    "BatchNormalization"
)
_RECURRENT = "recurrent layers are not supported; use Conv1D and pooling over time instead"
_ATTENTION = "attention is not supported; use convolutions and pooling instead"
_QUANTIZED = "quantized models are not supported; export the model with float weights"
_CONTROL = "control flow is not supported; export a model that is the same for every input"
_PLACES = "where a value lies would be told by what is read; leave it out, the client can do it"
_CONDITION = "a decision by secret values is not supported; use relu, clip, maximum or minimum"

_REASONS = {
    "LayerNormalization": _STATISTICS,
    "GroupNormalization": _STATISTICS,
    "InstanceNormalization": _STATISTICS,
    "RMSNormalization": _STATISTICS,
    "MeanVarianceNormalization": _STATISTICS,
    "LRN": _STATISTICS,
    "LSTM": _RECURRENT,
    "GRU": _RECURRENT,
    "RNN": _RECURRENT,
    "Attention": _ATTENTION,
    "MultiHeadAttention": _ATTENTION,
    "If": _CONTROL,
    "Loop": _CONTROL,
    "Scan": _CONTROL,
    "TopK": _PLACES,
    "ArgMax": _PLACES,
    "ArgMin": _PLACES,
    "NonMaxSuppression": _PLACES,
    "NonZero": _PLACES,
    "GatherND": _PLACES,
    "GatherElements": _PLACES,
    "ScatterND": _PLACES,
    "ScatterElements": _PLACES,
    "Greater": _CONDITION,
    "GreaterOrEqual": _CONDITION,
    "Less": _CONDITION,
    "LessOrEqual": _CONDITION,
    "Equal": _CONDITION,
    "Not": _CONDITION,
    "Sign": _CONDITION,
    "Floor": _CONDITION,
    "Ceil": _CONDITION,
    "Round": _CONDITION,
    "Einsum": "write the product as a linear layer, or as a reshape and a linear layer",
}

_TREES = "decision trees are not supported; use a linear model or an MLP"
_VECTORS = "support vector machines are not supported; use a linear model or an MLP"
_ENCODE = "encode categories before the query, and export the model without it"
REMEDIES = {
    "TreeEnsemble": _TREES,
    "TreeEnsembleClassifier": _TREES,
    "TreeEnsembleRegressor": _TREES,
    "SVMClassifier": _VECTORS,
    "SVMRegressor": _VECTORS,
    "Imputer": "fill missing values before the query, and export the model without it",
    "OneHotEncoder": _ENCODE,
    "LabelEncoder": _ENCODE,
    "CategoryMapper": _ENCODE,
    "DictVectorizer": _ENCODE,
    "Binarizer": "compare with the threshold before the query, and export the model without it",
}
"""Why an operator of scikit-learn is not served, and what to do."""


def reason(op: str) -> str:
    """Return why the operator is refused, in words that go behind its name."""
    known = _REASONS.get(op)
    if known is None and (
        "Quantize" in op or op.startswith(("QLinear", "QGemm")) or "Integer" in op
    ):
        known = _QUANTIZED
    return f"this ONNX operator is not supported{f': {known}' if known else ''}"
