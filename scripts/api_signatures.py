"""For the API reference: shows constructors that have `@takes(Options, ...)` with the signature that callers see."""

from __future__ import annotations

from typing import Any

import griffe


class CallersSignatures(griffe.Extension):
    """Replaces the parameter `options` of these constructors by the fields of the options' class."""

    def on_function(self, *, func: griffe.Function, loader: griffe.GriffeLoader, **kwargs: Any) -> None:
        for decorator in func.decorators:
            call = decorator.value
            if isinstance(call, griffe.ExprCall) and decorator.callable_path == "rlm._keywords.takes":
                name = call.arguments[0]
                assert isinstance(name, griffe.Expr)
                options = loader.modules_collection[name.canonical_path]
                func.parameters = griffe.Parameters(
                    *[p for p in func.parameters if p.name == "self"],
                    *[p for p in options.parameters if p.name != "self"],
                )
