"""``rsvp-backend versions``: look at the versions of the VLSM (RSVP_VERSIONS) or of the local reasoner
(RSVP_REASONER_VERSIONS), promote one, go back, delete one."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import Any

from rich.console import Console

from rsvp_backend.errors import SettingsError
from rsvp_backend.presets import reasoner_registry
from rsvp_backend.settings import Settings
from rsvp_backend.training.registry import Registry
from rsvp_backend.versioning import MODELS, Fitting, described, listed, promote, roll_back, scores_line

ACTIONS = ("list", "show", "promote", "rollback", "delete")
_WITH_ID = ("show", "promote", "delete")


def add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("action", nargs="?", choices=ACTIONS, default="list", help="what to do (default: list)")
    command.add_argument("id", nargs="?", metavar="ID", help=f"the version, for {', '.join(_WITH_ID)}")
    command.add_argument(
        "--project", type=int, metavar="ID",
        help="after promote and rollback: give the backend of this Label Studio project the new version as its title",
    )  # fmt: skip
    command.add_argument(
        "--of", choices=list(MODELS), default="vlsm", help="versions of the VLSM (default) or of the local reasoner"
    )
    command.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace, settings: Settings, out: Console) -> int:
    """Do what ``args`` say and give the exit status. Raises `SettingsError`, `VersionError` and others of ours."""
    registry = _checked(args, settings)
    if args.action in ("list", "show"):
        found = listed(registry) if args.action == "list" else _show(registry, args.id)
        lines = _list_lines(found) if args.action == "list" else _show_lines(found)
    elif args.action == "delete":
        registry.delete(args.id)
        found, lines = {"deleted": args.id}, [f"deleted {args.id}"]
    else:
        found, lines = _move(registry, args, settings)
    if args.json:
        out.out(json.dumps(found), highlight=False)
    else:
        for line in lines:
            out.print(line, markup=False)
    return 0


def _checked(args: argparse.Namespace, settings: Settings) -> Registry:
    if args.of == "vlsm" and settings.versions is None:
        raise SettingsError("RSVP_VERSIONS is not set: name the folder where the versions are")
    if (args.id is None) == (args.action in _WITH_ID):
        expected = "the ID of a version" if args.id is None else "no ID"
        raise SettingsError(f"versions {args.action}: {expected} is expected")
    if args.project is not None:
        if args.action not in ("promote", "rollback"):
            raise SettingsError(f"versions {args.action}: --project goes with promote and rollback only")
        if settings.label_studio_url is None or settings.label_studio_token is None:
            raise SettingsError("--project needs RSVP_LABEL_STUDIO_URL and RSVP_LABEL_STUDIO_TOKEN")
    if args.of == "reasoner" or settings.versions is None:
        return reasoner_registry(settings)
    return Registry(settings.versions)


def _show(registry: Registry, version_id: str) -> dict[str, Any]:
    version = registry.verify(version_id)
    record = version.record
    return {
        **described(registry, version), "base": record.base, "delta_sha256": version.delta_sha256,
        "decision": record.decision, "reasons": list(record.reasons), "data": list(record.data),
        "calibration": record.calibration,
    }  # fmt: skip


def _list_lines(found: Mapping[str, Any]) -> list[str]:
    lines = [
        f"{'*' if one['current'] else ' '} {one['id']:24} {one['state']:11} {one['created'][:16]} "
        f"{one['bytes'] / 1e6:8.2f} MB  parent {one['parent'] or 'base':24} {scores_line(one)}".rstrip()
        for one in found["versions"]
    ]
    lines += [f"! {name:24} {what}" for name, what in found["damaged"].items()]
    if found["current"] is None:
        lines.append("the base weights are current")
    return lines


def _show_lines(one: Mapping[str, Any]) -> list[str]:
    lines = [
        f"{one['id']}: {one['state']}{', current' if one['current'] else ''}",
        f"created     {one['created']}",
        f"base        {one['base']}",
        f"parent      {one['parent'] or 'base'}",
        f"delta       {one['bytes']} bytes, sha256 {one['delta_sha256']}",
        f"data        {len(one['data'])} corrections",
        f"scores      {scores_line(one) or 'none'}",
        f"decision    {one['decision']}",
    ]
    lines += [f"            {reason}" for reason in one["reasons"]]
    rows = (one["calibration"] or {}).get("table", [])
    return lines + [
        f"calibration {low:.2f}-{high:.2f}: {count} corrections, predicted {predicted:.2f}, reached {reached:.2f}"
        for low, high, count, predicted, reached in rows
    ]


def _move(registry: Registry, args: argparse.Namespace, settings: Settings) -> tuple[dict[str, Any], list[str]]:
    """Promote or roll back. The base weights are loaded: a version that does not fit them never becomes current."""
    model = _reasoner(registry, settings) if args.of == "reasoner" else _vlsm(registry, settings)
    before = _served(settings, args.project) if args.of == "reasoner" and args.project is not None else frozenset()
    current = promote(registry, args.id, model) if args.action == "promote" else roll_back(registry, model)
    found: dict[str, Any] = {"current": current, "model_version": None}
    lines = [f"{current or 'the base weights ' + model.base}: current from now on; running servers follow in seconds"]
    if args.project is not None:
        found["model_version"] = _tell(settings, args.project, current or model.base, before)
        lines.append(f"project {args.project}: its backend and model version are {found['model_version']} now")
    return found, lines


def _vlsm(registry: Registry, settings: Settings) -> Fitting:
    from rsvp_backend.presets import vlsm_source
    from rsvp_backend.vlsm import weights

    base = weights.load(vlsm_source(settings))
    return Fitting(base.version, lambda version: registry.load(base, version))


def _reasoner(registry: Registry, settings: Settings) -> Fitting:
    from rsvp_backend.presets import reasoner_base

    base = reasoner_base(settings)

    def try_on(version: str) -> None:
        registry.check_base(version, base.version)
        base.reasoner(registry.delta(version), version)

    return Fitting(base.version, try_on)


def _served(settings: Settings, project: int) -> frozenset[str]:
    from rsvp_backend.access import open_client
    from rsvp_backend.labelstudio.promotion import served_versions

    with open_client(settings) as client:
        return served_versions(client, project)


def _tell(settings: Settings, project: int, current: str, before: frozenset[str]) -> str:
    """``before``: what was served, where the version's name does not show in what will be."""
    from rsvp_backend.access import open_client
    from rsvp_backend.labelstudio.promotion import follow_change, follow_promotion

    with open_client(settings) as client:
        return follow_change(client, project, before) if before else follow_promotion(client, project, current)
