// Keeps a user at an endpoint; everybody else goes where least is in flight.

#include "balancer_plugin.h"
#include "json.h"

typedef balancer_plugin_string_t string;

// The field that names the user.
static text header;

static string lent(text value) { return (string){(uint8_t *)value.at, value.len}; }

// The error that the gateway shows. `configure` gives it back as its result.
static bool refuse(string *error, text before, text value, const char *after) {
  text parts[] = {before, value, text_of(after)};
  *error = lent(text_join(parts, 3));
  return false;
}

static bool is_field_name(text name) {
  for (size_t i = 0; i < name.len; i++) {
    uint8_t c = name.at[i];
    if (!((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-')) return false;
  }
  return name.len > 0;
}

bool exports_tidegate_policy_plugin_configure(string *input, string *error) {
  text none = {0};
  json *table = json_parse((text){input->ptr, input->len});
  header = text_of("x-user");
  if (!table || table->kind != JSON_TABLE) return refuse(error, none, none, "settings: not a table");
  for (json *each = table->first; each; each = each->next) {
    if (!text_is(each->key, "header")) return refuse(error, each->key, none, ": no such setting");
    header = each->text;
    if (each->kind != JSON_TEXT || !is_field_name(header)) {
      return refuse(error, text_of("header: \""), header, "\" is not a lower-case field name");
    }
  }
  balancer_plugin_string_free(input);
  return true;
}

bool exports_tidegate_policy_plugin_settings_schema(string *ret) {
  (void)ret;
  return false;
}

void exports_tidegate_policy_balancer_pick(exports_tidegate_policy_balancer_choice_t *choice) {
  string name = lent(header);
  tidegate_policy_types_field_value_t user;
  if (tidegate_policy_request_header(&name, &user)) {
    // FNV-1a; the gateway's consistent hash makes an endpoint of it.
    uint64_t hash = 0xcbf29ce484222325;
    for (size_t i = 0; i < user.len; i++) hash = (hash ^ user.ptr[i]) * 0x100000001b3;
    tidegate_policy_types_field_value_free(&user);
    choice->tag = EXPORTS_TIDEGATE_POLICY_BALANCER_CHOICE_HASH;
    choice->val.hash = hash;
    return;
  }
  balancer_plugin_list_u32_t available, in_flight;
  tidegate_policy_endpoints_availables(&available);
  tidegate_policy_endpoints_in_flights(&in_flight);
  choice->tag = EXPORTS_TIDEGATE_POLICY_BALANCER_CHOICE_PASS;
  for (size_t i = 0; i < available.len; i++) {
    uint32_t index = available.ptr[i];
    bool first = choice->tag == EXPORTS_TIDEGATE_POLICY_BALANCER_CHOICE_PASS;
    if (first || in_flight.ptr[index] < in_flight.ptr[choice->val.endpoint]) {
      choice->tag = EXPORTS_TIDEGATE_POLICY_BALANCER_CHOICE_ENDPOINT;
      choice->val.endpoint = index;
    }
  }
  balancer_plugin_list_u32_free(&available);
  balancer_plugin_list_u32_free(&in_flight);
}
