"""Routes each request to its tenant's cluster."""

import json
import re

from componentize_py_types import Err
from wit_world import exports
from wit_world.exports import router
from wit_world.imports import forward, request
from wit_world.imports.types import Field, Response

TEXT = {"type": "string"}
TEXTS = {"type": "array", "items": TEXT}
SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "required": ["tenants"],
    "properties": {
        "header": TEXT, "cookie": TEXT, "default": TEXT, "blocked": TEXTS, "open": TEXTS,
        "tenants": {"type": "object", "additionalProperties": TEXT},
    },
}


class Settings:
    """Checked once, by `configure`."""

    def __init__(self, given):
        if not isinstance(given, dict):
            raise ValueError("settings: not a table")
        for key in given:
            if key not in SCHEMA["properties"]:
                raise ValueError(f"{key}: no such setting")
        # The field that names the tenant, and tells it to the upstream.
        self.header = given.get("header", "x-tenant")
        if not isinstance(self.header, str) or not re.fullmatch("[a-z0-9-]+", self.header):
            raise ValueError(f"header: {json.dumps(self.header)} is not a lower-case field name")
        # The cookie that names it where the field is absent.
        self.cookie = given.get("cookie")
        if "cookie" in given and not isinstance(self.cookie, str):
            raise ValueError("cookie: not a text")
        # The cluster of each tenant.
        self.tenants = given.get("tenants")
        if not isinstance(self.tenants, dict):
            raise ValueError("tenants: not a table")
        for tenant, cluster in self.tenants.items():
            if not isinstance(cluster, str) or not cluster:
                raise ValueError(f"tenants.{tenant}: not a cluster's name")
        # The cluster of everybody else; without it the route table decides.
        self.default = given.get("default")
        if "default" in given and (not isinstance(self.default, str) or not self.default):
            raise ValueError("default: not a cluster's name")
        # Tenants that are turned away.
        self.blocked = texts(given, "blocked")
        for tenant in self.blocked:
            if tenant in self.tenants:
                raise ValueError(f"blocked: {json.dumps(tenant)} is in tenants too")
        # Beginnings of paths that are left to the route table.
        self.open = texts(given, "open")
        for path in self.open:
            if not path.startswith("/"):
                raise ValueError(f"open: {json.dumps(path)} does not begin with /")


def texts(given, key):
    value = given.get(key, [])
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise ValueError(f"{key}: not a list of texts")
    return value


settings = None


class Plugin(exports.Plugin):
    def configure(self, given):
        global settings
        try:
            settings = Settings(json.loads(given))
        except ValueError as error:
            raise Err(str(error))

    def settings_schema(self):
        return json.dumps(SCHEMA)


class Router(exports.Router):
    def route(self):
        path = request.path()
        if any(path.startswith(open) for open in settings.open):
            return router.Answer_Pass()
        tenant = tenant_of_request()
        if tenant is not None:
            if tenant in settings.blocked:
                headers = [Field("content-type", b"text/plain")]
                return router.Answer_Respond(Response(403, headers, f"tenant {tenant} is blocked\n".encode()))
            cluster = settings.tenants.get(tenant)
            if cluster is not None:
                edit(forward.set_header, settings.header, tenant.encode())
                forward.set_note("tenant", tenant)
                return router.Answer_Forward(cluster)
            # Nobody's name goes upstream.
            edit(forward.remove_header, settings.header)
        return router.Answer_Pass() if settings.default is None else router.Answer_Forward(settings.default)


def tenant_of_request():
    value = request.header(settings.header)
    if value is not None:
        try:
            return value.decode()
        except UnicodeDecodeError:
            pass
    return None if settings.cookie is None else request.cookie(settings.cookie)


def edit(change, *values):
    """Refused where the field is not granted: the answer holds without it."""
    try:
        change(*values)
    except Err:
        pass
