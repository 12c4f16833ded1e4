// Routes each request to its tenant's cluster.

#include <stdlib.h>

#include "json.h"
#include "router_plugin.h"

typedef router_plugin_string_t string;

static const char schema[] =
    "{\"type\":\"object\",\"additionalProperties\":false,\"required\":[\"tenants\"],\"properties\":{"
    "\"header\":{\"type\":\"string\"},\"cookie\":{\"type\":\"string\"},\"default\":{\"type\":\"string\"},"
    "\"blocked\":{\"type\":\"array\",\"items\":{\"type\":\"string\"}},"
    "\"open\":{\"type\":\"array\",\"items\":{\"type\":\"string\"}},"
    "\"tenants\":{\"type\":\"object\",\"additionalProperties\":{\"type\":\"string\"}}}}";

// What passed the checks of `configure`; null where it was left out.
static struct {
  // The field that names the tenant, and tells it to the upstream.
  text header;
  // The cookie that names it where the field is absent.
  json *cookie;
  // The cluster of each tenant.
  json *tenants;
  // The cluster of everybody else; without it the route table decides.
  json *fallback;
  // Tenants that are turned away.
  json *blocked;
  // Beginnings of paths that are left to the route table.
  json *open;
} settings;

// Lent to the bindings, which do not write to it.
static string lent(text value) { return (string){(uint8_t *)value.at, value.len}; }

// Owned by whoever gets it.
static string given(text value) { return lent(text_join(&value, 1)); }

// The error that the gateway shows. `configure` gives it back as its result.
static bool refuse(string *error, text before, text value, const char *after) {
  text parts[] = {before, value, text_of(after)};
  *error = lent(text_join(parts, 3));
  return false;
}

static bool is_list_of_texts(const json *value) {
  if (value->kind != JSON_LIST) return false;
  for (json *each = value->first; each; each = each->next) {
    if (each->kind != JSON_TEXT) return false;
  }
  return true;
}

static bool is_field_name(text name) {
  for (size_t i = 0; i < name.len; i++) {
    uint8_t c = name.at[i];
    if (!((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-')) return false;
  }
  return name.len > 0;
}

static bool set(json *value, string *error) {
  text key = value->key, none = {0};
  if (text_is(key, "header")) {
    settings.header = value->text;
    if (value->kind != JSON_TEXT || !is_field_name(value->text)) {
      return refuse(error, text_of("header: \""), value->text, "\" is not a lower-case field name");
    }
  } else if (text_is(key, "cookie")) {
    settings.cookie = value;
    if (value->kind != JSON_TEXT) return refuse(error, key, none, ": not a text");
  } else if (text_is(key, "tenants")) {
    settings.tenants = value;
    if (value->kind != JSON_TABLE) return refuse(error, key, none, ": not a table");
    for (json *each = value->first; each; each = each->next) {
      if (each->kind != JSON_TEXT || each->text.len == 0) {
        return refuse(error, text_of("tenants."), each->key, ": not a cluster's name");
      }
    }
  } else if (text_is(key, "default")) {
    settings.fallback = value;
    if (value->kind != JSON_TEXT || value->text.len == 0) return refuse(error, key, none, ": not a cluster's name");
  } else if (text_is(key, "blocked")) {
    settings.blocked = value;
    if (!is_list_of_texts(value)) return refuse(error, key, none, ": not a list of texts");
  } else if (text_is(key, "open")) {
    settings.open = value;
    if (!is_list_of_texts(value)) return refuse(error, key, none, ": not a list of texts");
    for (json *each = value->first; each; each = each->next) {
      if (!text_begins(each->text, text_of("/"))) {
        return refuse(error, text_of("open: \""), each->text, "\" does not begin with /");
      }
    }
  } else {
    return refuse(error, key, none, ": no such setting");
  }
  return true;
}

static json *cluster_of(text tenant) {
  json *each = settings.tenants->first;
  while (each && !text_same(each->key, tenant)) each = each->next;
  return each;
}

bool exports_tidegate_policy_plugin_configure(string *input, string *error) {
  text none = {0};
  json *table = json_parse((text){input->ptr, input->len});
  settings.header = text_of("x-tenant");
  if (!table || table->kind != JSON_TABLE) return refuse(error, none, none, "settings: not a table");
  for (json *each = table->first; each; each = each->next) {
    if (!set(each, error)) return false;
  }
  if (!settings.tenants) return refuse(error, none, none, "tenants: not a table");
  for (json *each = settings.blocked ? settings.blocked->first : NULL; each; each = each->next) {
    if (cluster_of(each->text)) return refuse(error, text_of("blocked: \""), each->text, "\" is in tenants too");
  }
  router_plugin_string_free(input);
  return true;
}

bool exports_tidegate_policy_plugin_settings_schema(string *ret) {
  *ret = given(text_of(schema));
  return true;
}

static bool tenant_of_request(text *tenant) {
  string name = lent(settings.header), value;
  tidegate_policy_types_field_value_t bytes;
  if (tidegate_policy_request_header(&name, &bytes)) {
    *tenant = (text){bytes.ptr, bytes.len};
    if (text_is_utf8(*tenant)) return true;
    tidegate_policy_types_field_value_free(&bytes);
  }
  if (!settings.cookie) return false;
  name = lent(settings.cookie->text);
  if (!tidegate_policy_request_cookie(&name, &value)) return false;
  *tenant = (text){value.ptr, value.len};
  return true;
}

static void forward_to(exports_tidegate_policy_router_answer_t *answer, const json *cluster) {
  answer->tag = EXPORTS_TIDEGATE_POLICY_ROUTER_ANSWER_PASS;
  if (!cluster) return;
  answer->tag = EXPORTS_TIDEGATE_POLICY_ROUTER_ANSWER_FORWARD;
  answer->val.forward = given(cluster->text);
}

static void turn_away(exports_tidegate_policy_router_answer_t *answer, text tenant) {
  text body[] = {text_of("tenant "), tenant, text_of(" is blocked\n")};
  text content = text_join(body, 3);
  string type = given(text_of("text/plain"));
  tidegate_policy_types_field_t *field = malloc(sizeof *field);
  if (!field) __builtin_trap();
  field->name = given(text_of("content-type"));
  field->value = (tidegate_policy_types_field_value_t){type.ptr, type.len};
  answer->tag = EXPORTS_TIDEGATE_POLICY_ROUTER_ANSWER_RESPOND;
  answer->val.respond.status = 403;
  answer->val.respond.headers.ptr = field;
  answer->val.respond.headers.len = 1;
  answer->val.respond.body.ptr = (uint8_t *)content.at;
  answer->val.respond.body.len = content.len;
}

// An edit is refused where the field is not granted: the answer holds without it.
static void edited(bool fine, tidegate_policy_forward_edit_error_t *error) {
  if (!fine) tidegate_policy_forward_edit_error_free(error);
}

void exports_tidegate_policy_router_route(exports_tidegate_policy_router_answer_t *answer) {
  string path, name = lent(settings.header), note = lent(text_of("tenant"));
  tidegate_policy_forward_edit_error_t error;
  tidegate_policy_request_path(&path);
  bool open = false;
  for (json *each = settings.open ? settings.open->first : NULL; each && !open; each = each->next) {
    open = text_begins((text){path.ptr, path.len}, each->text);
  }
  router_plugin_string_free(&path);
  text tenant;
  if (open || !tenant_of_request(&tenant)) {
    forward_to(answer, open ? NULL : settings.fallback);
    return;
  }
  json *blocked = settings.blocked ? settings.blocked->first : NULL;
  while (blocked && !text_same(blocked->text, tenant)) blocked = blocked->next;
  json *cluster = cluster_of(tenant);
  if (blocked) {
    turn_away(answer, tenant);
  } else if (cluster) {
    tidegate_policy_types_field_value_t value = {(uint8_t *)tenant.at, tenant.len};
    string words = lent(tenant);
    edited(tidegate_policy_forward_set_header(&name, &value, &error), &error);
    tidegate_policy_forward_set_note(&note, &words);
    forward_to(answer, cluster);
  } else {
    // Nobody's name goes upstream.
    edited(tidegate_policy_forward_remove_header(&name, &error), &error);
    forward_to(answer, settings.fallback);
  }
  // The bindings give no memory for what is empty.
  if (tenant.len > 0) free((void *)tenant.at);
}
