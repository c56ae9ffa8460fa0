"""`RsvpMLBackend`: this backend as a `label-studio-ml` 2.x model, for those who run their models by its server.

    # model.py of `label-studio-ml create`
    from rsvp_backend.labelstudio.ml_base import RsvpMLBackend

`label-studio-ml` makes a new model for every request; the engine behind them is one per process, and the predictions
are those of ``rsvp-backend serve``. The package is imported only when the class is asked for, as its import opens a
database in ``MODEL_DIR``.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from rsvp_backend.errors import LabelConfigError, SettingsError
from rsvp_backend.labelstudio.tags import parse_label_config
from rsvp_backend.security.credentials import is_loopback
from rsvp_backend.security.logs import set_up_logging
from rsvp_backend.server import make_engine
from rsvp_backend.serving.in_process import Service
from rsvp_backend.settings import load_settings

log = logging.getLogger(__name__)
JSON = dict[str, Any]

SOURCE = "git+https://github.com/HumanSignal/label-studio-ml-backend"
COMMIT = "d02cedf35d0e5d21f2f437c120174c62f66bf57a"
"""The one that this is tried with; docker/Dockerfile installs it."""

_lock = threading.Lock()
_services: dict[int, Service] = {}


def service() -> Service:
    """The process's one, made from the settings at the first call. Raises `SettingsError` and `LabelStudioError`.

    Threads do not follow into a forked process: there another one is made.
    """
    with _lock:
        found = _services.get(os.getpid())
        if found is None:
            settings = load_settings()
            found = _services[os.getpid()] = Service(settings, make_engine(settings))
            atexit.register(found.close)
        return found


class _Base(Protocol):
    """What is used of ``label_studio_ml.model.LabelStudioMLBase``."""

    project_id: str

    def get(self, key: str) -> str | None: ...
    def set(self, key: str, value: str) -> None: ...


if TYPE_CHECKING:
    _Model = _Base
else:
    _Model = object


class RsvpModel(_Model):
    """The methods that `label-studio-ml`'s server calls; `backend_class` puts its base class underneath.

    ``response``: its ``ModelResponse``.
    """

    INITIAL_MODEL_VERSION = ""
    response: type[Any]

    def setup(self) -> None:
        """Called with every request. Names the version that is served, empty while the models load.

        Raises `NotReadyError` where they cannot be loaded.
        """
        self.set("model_version", service().version() or "")
        service().defaults.learn(self.project_id, self._extra_params())
        try:
            parse_label_config(self.get("label_config") or "")
        except LabelConfigError as error:
            log.warning("project %s: %s", self.project_id, error)

    def set_extra_params(self, extra_params: Any) -> None:
        """Label Studio sends an object, where the base class can only keep a text."""
        text = extra_params if isinstance(extra_params, str) else json.dumps(extra_params)
        self.set("extra_params", text)
        service().defaults.learn(self.project_id, self._extra_params())

    def predict(self, tasks: Sequence[JSON], context: Mapping[str, Any] | None = None, **_: Any) -> Any:
        """A ``ModelResponse`` with one prediction a task, each with its own ``model_version``.

        Raises `NotReadyError` and `BusyError`: an error reply has Label Studio keep nothing, and the tasks are asked
        for again.
        """
        results = service().predict(tasks, self.get("label_config") or "", self.project_id, context)
        return self.response(model_version=self.get("model_version") or None, predictions=results)

    def fit(self, event: str, data: Mapping[str, Any], **_: Any) -> JSON:
        """Only queues a job for ``rsvp-backend worker``, or counts a correction: as ``/webhook`` does."""
        return service().notify({**data, "action": event})

    def _extra_params(self) -> Any:
        try:
            return json.loads(self.get("extra_params") or "null")
        except ValueError:
            return None


def backend_class(base: type[Any], response: type[Any]) -> type[Any]:
    """`RsvpModel` over ``base``, which is ``LabelStudioMLBase`` or a class of its shape; ``response`` alike."""
    return type("RsvpMLBackend", (RsvpModel, base), {"response": response, "__module__": __name__})


def wsgi() -> Any:
    """The application that a WSGI server runs: ``gunicorn --workers 1 'rsvp_backend.labelstudio.ml_base:wsgi()'``.

    Everything in it, webhooks included, needs ``RSVP_BASIC_AUTH_USER`` and ``RSVP_BASIC_AUTH_PASSWORD``. Raises
    `SettingsError` where they lack and ``RSVP_HOST`` can be reached by other machines.
    """
    settings = load_settings()
    set_up_logging(settings)
    user, password = settings.basic_auth_user, settings.basic_auth_password
    if user is None and not settings.allow_no_auth and not is_loopback(settings.host):
        raise SettingsError(
            f"RSVP_HOST is {settings.host!r}, which other machines can reach: set RSVP_BASIC_AUTH_USER and "
            "RSVP_BASIC_AUTH_PASSWORD, or RSVP_ALLOW_NO_AUTH=true where a proxy in front checks who asks"
        )
    backend = _backend()
    from label_studio_ml.api import init_app

    service()
    return init_app(backend, user, password.get_secret_value() if password else None)


def _backend() -> type[Any]:
    try:
        from label_studio_ml.model import LabelStudioMLBase
        from label_studio_ml.response import ModelResponse
    except ImportError as error:
        raise ImportError(
            f"RsvpMLBackend needs label-studio-ml 2.x ({error}). It is not in the package index, whose 1.x is another "
            f"interface: pip install 'label-studio-ml @ {SOURCE}@{COMMIT}', or run `rsvp-backend serve`, which does "
            "without"
        ) from None
    return backend_class(LabelStudioMLBase, ModelResponse)


def __getattr__(name: str) -> Any:
    if name != "RsvpMLBackend":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return globals().setdefault(name, _backend())
