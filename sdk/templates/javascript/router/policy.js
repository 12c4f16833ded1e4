// Routes each request to its tenant's cluster.

import { cookie, header, path } from "tidegate:policy/request@0.1.0";
import { removeHeader, setHeader, setNote } from "tidegate:policy/forward@0.1.0";

const text = { type: "string" };
const texts = { type: "array", items: text };
const schema = {
  type: "object",
  additionalProperties: false,
  required: ["tenants"],
  properties: {
    header: text, cookie: text, default: text, blocked: texts, open: texts,
    tenants: { type: "object", additionalProperties: text },
  },
};

/// Settings that passed the checks of `configure`.
let settings;

export const plugin = {
  configure(given) {
    settings = check(JSON.parse(given));
  },
  settingsSchema() {
    return JSON.stringify(schema);
  },
};

export const router = {
  route() {
    const at = path();
    if (settings.open.some((open) => at.startsWith(open))) return { tag: "pass" };
    const tenant = tenantOfRequest();
    if (tenant !== undefined) {
      if (settings.blocked.includes(tenant)) {
        const headers = [{ name: "content-type", value: bytes("text/plain") }];
        return { tag: "respond", val: { status: 403, headers, body: bytes(`tenant ${tenant} is blocked\n`) } };
      }
      const cluster = settings.tenants.get(tenant);
      if (cluster !== undefined) {
        edit(() => setHeader(settings.header, bytes(tenant)));
        setNote("tenant", tenant);
        return { tag: "forward", val: cluster };
      }
      // Nobody's name goes upstream.
      edit(() => removeHeader(settings.header));
    }
    return settings.default === undefined ? { tag: "pass" } : { tag: "forward", val: settings.default };
  },
};

function tenantOfRequest() {
  const value = header(settings.header);
  if (value !== undefined) {
    try {
      return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(value);
    } catch {
      // No text: as if it were absent.
    }
  }
  return settings.cookie === undefined ? undefined : cookie(settings.cookie);
}

/// Refused where the field is not granted: the answer holds without it.
function edit(change) {
  try {
    change();
  } catch {
    // Nothing to undo.
  }
}

function bytes(words) {
  return new TextEncoder().encode(words);
}

/// An error is thrown as the text that the gateway shows.
function check(given) {
  if (!isTable(given)) throw "settings: not a table";
  for (const key of Object.keys(given)) {
    if (!Object.hasOwn(schema.properties, key)) throw `${key}: no such setting`;
  }
  // The field that names the tenant, and tells it to the upstream.
  const { header = "x-tenant", cookie, tenants, default: fallback } = given;
  if (typeof header !== "string" || !/^[a-z0-9-]+$/.test(header)) {
    throw `header: ${JSON.stringify(header)} is not a lower-case field name`;
  }
  // The cookie that names it where the field is absent.
  if (cookie !== undefined && typeof cookie !== "string") throw "cookie: not a text";
  // The cluster of each tenant.
  if (!isTable(tenants)) throw "tenants: not a table";
  for (const [tenant, cluster] of Object.entries(tenants)) {
    if (typeof cluster !== "string" || cluster === "") throw `tenants.${tenant}: not a cluster's name`;
  }
  // The cluster of everybody else; without it the route table decides.
  if (fallback !== undefined && (typeof fallback !== "string" || fallback === "")) {
    throw "default: not a cluster's name";
  }
  // Tenants that are turned away.
  const blocked = listOfTexts(given, "blocked");
  for (const tenant of blocked) {
    if (Object.hasOwn(tenants, tenant)) throw `blocked: ${JSON.stringify(tenant)} is in tenants too`;
  }
  // Beginnings of paths that are left to the route table.
  const open = listOfTexts(given, "open");
  for (const path of open) {
    if (!path.startsWith("/")) throw `open: ${JSON.stringify(path)} does not begin with /`;
  }
  return { header, cookie, tenants: new Map(Object.entries(tenants)), default: fallback, blocked, open };
}

function isTable(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function listOfTexts(given, key) {
  const value = given[key] ?? [];
  if (!Array.isArray(value) || value.some((each) => typeof each !== "string")) throw `${key}: not a list of texts`;
  return value;
}
