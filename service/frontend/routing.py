"""The table of routes: which call of which path is answered by what. Pure matching; the answers: asgi.py.

A path template has parameters in braces, one in a segment: /predict/{model}/versions/{version}. The table also makes
the OpenAPI document, so a route and its description cannot part.
"""

import re
from typing import Final

from foldserve.service.errors import MethodNotAllowed, NotFound
from foldserve.service.protocols.routes import Route

_PARAMETER: Final = re.compile(r"\{(\w+)\}")


def _fixed(path: str) -> int:
    """Characters of a template that are no parameter's."""
    return len(_PARAMETER.sub("", path))


class RouteTable:
    """Finds the route of a request; a GET route also answers HEAD."""

    def __init__(self, routes: tuple[Route, ...]) -> None:
        self.routes = routes
        self.methods = (*sorted({route.method for route in routes}), "HEAD", "OPTIONS")
        """Of any path."""
        self._by_path: dict[str, dict[str, Route]] = {}
        for route in routes:
            methods = self._by_path.setdefault(route.path, {})
            methods[route.method] = route
            if route.method == "GET":
                methods["HEAD"] = route
        # The more of a path is fixed the earlier: {model}:predict is none of {model}.
        templates = sorted((path for path in self._by_path if "{" in path), key=_fixed, reverse=True)
        self._patterns = [
            (re.compile(_PARAMETER.sub(r"(?P<\1>[^/]+)", path)), self._by_path[path]) for path in templates
        ]

    def match(self, method: str, path: str) -> tuple[Route, dict[str, str]]:
        """Return the route and the path's parameters. Raises NotFound, MethodNotAllowed."""
        methods = self._by_path.get(path)
        parameters: dict[str, str] = {}
        if methods is None or "{" in path:
            for pattern, candidates in self._patterns:
                found = pattern.fullmatch(path)
                if found:
                    methods, parameters = candidates, found.groupdict()
                    break
            else:
                raise NotFound(
                    f"there is nothing at {path[:200]!r}{self._hint(path)}; GET /docs lists what there is"
                )
        try:
            return methods[method], parameters
        except KeyError:
            allow = tuple(sorted(methods))
            raise MethodNotAllowed(
                f"{path[:200]!r} does not answer {method[:20]}; expected {' or '.join(allow)}", allow
            ) from None

    def _hint(self, path: str) -> str:
        """What was probably meant: the same path without slashes too many, its fixed words in lower case."""
        segments = [segment for segment in path.split("/") if segment]
        for known in self._by_path:
            words = [word for word in known.split("/") if word]
            if len(words) == len(segments) and all(
                word.startswith("{") or word == segment.lower()
                for word, segment in zip(words, segments, strict=True)
            ):
                meant = "".join(
                    f"/{segment if word.startswith('{') else word}"
                    for word, segment in zip(words, segments, strict=True)
                )
                return f", perhaps {meant[:200]!r} was meant"
        return ""
