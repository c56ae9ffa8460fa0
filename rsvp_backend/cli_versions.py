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
from rsvp_backend.training.versions import Version

ACTIONS = ("list", "show", "promote", "rollback", "delete")
MODELS = ("vlsm", "reasoner")
_WITH_ID = ("show", "promote", "delete")


def add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("action", nargs="?", choices=ACTIONS, default="list", help="what to do (default: list)")
    command.add_argument("id", nargs="?", metavar="ID", help=f"the version, for {', '.join(_WITH_ID)}")
    command.add_argument(
        "--project", type=int, metavar="ID",
        help="after promote and rollback: give the backend of this Label Studio project the new version as its title",
    )  # fmt: skip
    command.add_argument(
        "--of", choices=MODELS, default="vlsm", help="versions of the VLSM (default) or of the local reasoner"
    )
    command.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace, settings: Settings, out: Console) -> int:
    """Do what ``args`` say and give the exit status. Raises `SettingsError`, `VersionError` and others of ours."""
    registry = _checked(args, settings)
    if args.action in ("list", "show"):
        found = _list(registry) if args.action == "list" else _show(registry, args.id)
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


def _list(registry: Registry) -> dict[str, Any]:
    return {
        "current": registry.current(),
        "versions": [_described(registry, version) for version in registry.list()],
        "damaged": registry.damaged(),
    }


def _show(registry: Registry, version_id: str) -> dict[str, Any]:
    version = registry.verify(version_id)
    record = version.record
    return {
        **_described(registry, version), "base": record.base, "delta_sha256": version.delta_sha256,
        "decision": record.decision, "reasons": list(record.reasons), "data": list(record.data),
        "calibration": record.calibration,
    }  # fmt: skip


def _described(registry: Registry, version: Version) -> dict[str, Any]:
    return {
        "id": version.id, "current": version.id == registry.current(), "state": registry.states()[version.id],
        "created": version.created.isoformat(timespec="seconds"), "bytes": version.delta_bytes,
        "parent": version.record.parent, "before": dict(version.record.before), "after": dict(version.record.after),
    }  # fmt: skip


def _list_lines(found: Mapping[str, Any]) -> list[str]:
    lines = [
        f"{'*' if one['current'] else ' '} {one['id']:24} {one['state']:11} {one['created'][:16]} "
        f"{one['bytes'] / 1e6:8.2f} MB  parent {one['parent'] or 'base':24} {_scores(one)}".rstrip()
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
        f"scores      {_scores(one) or 'none'}",
        f"decision    {one['decision']}",
    ]
    lines += [f"            {reason}" for reason in one["reasons"]]
    rows = (one["calibration"] or {}).get("table", [])
    return lines + [
        f"calibration {low:.2f}-{high:.2f}: {count} corrections, predicted {predicted:.2f}, reached {reached:.2f}"
        for low, high, count, predicted, reached in rows
    ]


def _scores(one: Mapping[str, Any]) -> str:
    """``iou 0.412 -> 0.781``, of every score that is known on one side or both."""
    before, after = one["before"], one["after"]
    names = [*after, *(name for name in before if name not in after)]
    shown = {name: [f"{side[name]:.3f}" if name in side else "?" for side in (before, after)] for name in names}
    return ", ".join(f"{name} {' -> '.join(values)}" for name, values in shown.items())


def _move(registry: Registry, args: argparse.Namespace, settings: Settings) -> tuple[dict[str, Any], list[str]]:
    """Promote or roll back. The base weights are loaded: a version that does not fit them never becomes current."""
    base = _reasoner_base(registry, args, settings) if args.of == "reasoner" else _vlsm_base(registry, args, settings)
    before = _served(settings, args.project) if args.of == "reasoner" and args.project is not None else frozenset()
    current = registry.promote(args.id, base).id if args.action == "promote" else registry.rollback(base)
    found: dict[str, Any] = {"current": current, "model_version": None}
    lines = [f"{current or 'the base weights ' + base}: current from now on; running servers follow in seconds"]
    if args.project is not None:
        found["model_version"] = _tell(settings, args.project, current or base, before)
        lines.append(f"project {args.project}: its backend and model version are {found['model_version']} now")
    return found, lines


def _vlsm_base(registry: Registry, args: argparse.Namespace, settings: Settings) -> str:
    from rsvp_backend.presets import vlsm_source
    from rsvp_backend.vlsm import weights

    base = weights.load(vlsm_source(settings))
    if args.action == "promote":
        registry.load(base, args.id)
    return base.version


def _reasoner_base(registry: Registry, args: argparse.Namespace, settings: Settings) -> str:
    from rsvp_backend.presets import reasoner_base

    base = reasoner_base(settings)
    if args.action == "promote":
        registry.check_base(args.id, base.version)
        base.reasoner(registry.delta(args.id), args.id)
    return base.version


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
