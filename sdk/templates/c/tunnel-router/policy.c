// Sends each connection where the name in its ClientHello belongs.

#include "json.h"
#include "tunnel_router_plugin.h"

typedef tunnel_router_plugin_string_t string;
typedef exports_tidegate_policy_tunnel_router_answer_t answer;

// What passed the checks of `configure`; null where it was left out.
static struct {
  // The cluster of each name, and of all names below it.
  json *names;
  // Names that go nowhere, with all below them.
  json *blocked;
  // The cluster of connections that name nothing; without it the listener's routes decide.
  json *nameless;
} settings;

// Owned by whoever gets it.
static string given(text value) {
  text copy = text_join(&value, 1);
  return (string){(uint8_t *)copy.at, copy.len};
}

// The error that the gateway shows. `configure` gives it back as its result.
static bool refuse(string *error, text before, text value, const char *after) {
  text parts[] = {before, value, text_of(after)};
  text words = text_join(parts, 3);
  *error = (string){(uint8_t *)words.at, words.len};
  return false;
}

static bool is_cluster(const json *value) { return value->kind == JSON_TEXT && value->text.len > 0; }

static bool set(json *value, string *error) {
  text key = value->key, none = {0};
  if (text_is(key, "names")) {
    settings.names = value;
    if (value->kind != JSON_TABLE) return refuse(error, key, none, ": not a table");
    for (json *each = value->first; each; each = each->next) {
      if (!is_cluster(each)) return refuse(error, text_of("names."), each->key, ": not a cluster's name");
    }
  } else if (text_is(key, "blocked")) {
    settings.blocked = value;
    if (value->kind != JSON_LIST) return refuse(error, key, none, ": not a list of texts");
    for (json *each = value->first; each; each = each->next) {
      if (each->kind != JSON_TEXT) return refuse(error, key, none, ": not a list of texts");
    }
  } else if (text_is(key, "nameless")) {
    settings.nameless = value;
    if (!is_cluster(value)) return refuse(error, key, none, ": not a cluster's name");
  } else {
    return refuse(error, key, none, ": no such setting");
  }
  return true;
}

static json *cluster_of(text name) {
  json *each = settings.names->first;
  while (each && !text_same(each->key, name)) each = each->next;
  return each;
}

static bool is_blocked(text name) {
  json *each = settings.blocked ? settings.blocked->first : NULL;
  while (each && !text_same(each->text, name)) each = each->next;
  return each;
}

bool exports_tidegate_policy_plugin_configure(string *input, string *error) {
  text none = {0};
  json *table = json_parse((text){input->ptr, input->len});
  if (!table || table->kind != JSON_TABLE) return refuse(error, none, none, "settings: not a table");
  for (json *each = table->first; each; each = each->next) {
    if (!set(each, error)) return false;
  }
  if (!settings.names) return refuse(error, none, none, "names: not a table");
  for (json *each = settings.blocked ? settings.blocked->first : NULL; each; each = each->next) {
    if (cluster_of(each->text)) return refuse(error, text_of("blocked: \""), each->text, "\" is in names too");
  }
  tunnel_router_plugin_string_free(input);
  return true;
}

bool exports_tidegate_policy_plugin_settings_schema(string *ret) {
  (void)ret;
  return false;
}

static void forward_to(answer *answer, const json *cluster) {
  answer->tag = EXPORTS_TIDEGATE_POLICY_TUNNEL_ROUTER_ANSWER_PASS;
  if (!cluster) return;
  answer->tag = EXPORTS_TIDEGATE_POLICY_TUNNEL_ROUTER_ANSWER_FORWARD;
  answer->val.forward = given(cluster->text);
}

void exports_tidegate_policy_tunnel_router_route(answer *answer) {
  string name;
  if (!tidegate_policy_connection_server_name(&name)) {
    forward_to(answer, settings.nameless);
    return;
  }
  forward_to(answer, NULL);
  // The name itself, then what it is below of.
  text rest = {name.ptr, name.len};
  while (rest.len > 0) {
    json *cluster = cluster_of(rest);
    if (is_blocked(rest)) answer->tag = EXPORTS_TIDEGATE_POLICY_TUNNEL_ROUTER_ANSWER_REFUSE;
    else if (cluster) forward_to(answer, cluster);
    if (answer->tag != EXPORTS_TIDEGATE_POLICY_TUNNEL_ROUTER_ANSWER_PASS) break;
    while (rest.len > 0 && *rest.at != '.') rest = (text){rest.at + 1, rest.len - 1};
    if (rest.len > 0) rest = (text){rest.at + 1, rest.len - 1};
  }
  tunnel_router_plugin_string_free(&name);
}
