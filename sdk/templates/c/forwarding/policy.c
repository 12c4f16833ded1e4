// Tells the upstream a label in place of the client's address, and nothing of the hops before it.

#include "forwarding_plugin.h"
#include "json.h"

typedef forwarding_plugin_string_t string;

// An obfuscated identifier: it begins with an underscore (RFC 7239, section 6.3).
static text label;

static string lent(text value) { return (string){(uint8_t *)value.at, value.len}; }

// The error that the gateway shows. `configure` gives it back as its result.
static bool refuse(string *error, text before, text value, const char *after) {
  text parts[] = {before, value, text_of(after)};
  *error = lent(text_join(parts, 3));
  return false;
}

static bool is_label(text name) {
  for (size_t i = 0; i < name.len; i++) {
    uint8_t c = name.at[i], letter = c | 32;
    if (!((letter >= 'a' && letter <= 'z') || (c >= '0' && c <= '9') || c == '.' || c == '_' || c == '-')) return false;
  }
  return name.len > 0 && name.at[0] == '_';
}

bool exports_tidegate_policy_plugin_configure(string *input, string *error) {
  text none = {0};
  json *table = json_parse((text){input->ptr, input->len});
  label = text_of("_client");
  if (!table || table->kind != JSON_TABLE) return refuse(error, none, none, "settings: not a table");
  for (json *each = table->first; each; each = each->next) {
    if (!text_is(each->key, "label")) return refuse(error, each->key, none, ": no such setting");
    label = each->text;
    if (each->kind != JSON_TEXT || !is_label(label)) {
      return refuse(error, text_of("label: \""), label, "\" is not an underscore and letters, digits, . _ or -");
    }
  }
  forwarding_plugin_string_free(input);
  return true;
}

bool exports_tidegate_policy_plugin_settings_schema(string *ret) {
  (void)ret;
  return false;
}

void exports_tidegate_policy_forwarding_identify(void) {
  tidegate_policy_identity_list_element_t chain;
  tidegate_policy_identity_proposed(&chain);
  if (chain.len > 0) {
    // Part of the chain, changed and lent: the chain is freed as it was.
    tidegate_policy_identity_element_t nearest = chain.ptr[chain.len - 1];
    nearest.for_.is_some = true;
    nearest.for_.val.tag = TIDEGATE_POLICY_IDENTITY_NODE_OBFUSCATED;
    nearest.for_.val.val.obfuscated = lent(label);
    tidegate_policy_identity_list_element_t one = {&nearest, 1};
    tidegate_policy_identity_edit_error_t error;
    // A chain that cannot be written leaves the configured rule in force.
    if (!tidegate_policy_identity_set_elements(&one, &error)) tidegate_policy_identity_edit_error_free(&error);
  }
  tidegate_policy_identity_list_element_free(&chain);
}
