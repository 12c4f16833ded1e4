// Goes elsewhere where the origin was not reached, and waits for one that is overloaded.

#include "json.h"
#include "retry_plugin.h"

typedef retry_plugin_string_t string;

// Most attempts that are followed by another; milliseconds that an overloaded origin is given.
static uint32_t attempts, pause_ms;

// The error that the gateway shows. `configure` gives it back as its result.
static bool refuse(string *error, text before, const char *after) {
  text parts[] = {before, text_of(after)};
  text joined = text_join(parts, 2);
  *error = (string){(uint8_t *)joined.at, joined.len};
  return false;
}

static bool whole(const json *value, double least, double most, uint32_t *into) {
  if (value->kind != JSON_NUMBER || value->number < least || value->number > most) return false;
  *into = (uint32_t)value->number;
  return *into == value->number;
}

bool exports_tidegate_policy_plugin_configure(string *input, string *error) {
  text none = {0};
  json *table = json_parse((text){input->ptr, input->len});
  attempts = 2;
  pause_ms = 50;
  if (!table || table->kind != JSON_TABLE) return refuse(error, none, "settings: not a table");
  for (json *each = table->first; each; each = each->next) {
    if (text_is(each->key, "attempts")) {
      if (!whole(each, 1, 10, &attempts)) return refuse(error, none, "attempts: not from 1 to 10");
    } else if (text_is(each->key, "pause_ms")) {
      if (!whole(each, 0, 10000, &pause_ms)) return refuse(error, none, "pause_ms: not from 0 to 10000");
    } else {
      return refuse(error, each->key, ": no such setting");
    }
  }
  retry_plugin_string_free(input);
  return true;
}

bool exports_tidegate_policy_plugin_settings_schema(string *ret) {
  (void)ret;
  return false;
}

void exports_tidegate_policy_retry_decide(exports_tidegate_policy_retry_verdict_t *verdict) {
  verdict->tag = EXPORTS_TIDEGATE_POLICY_RETRY_VERDICT_STOP;
  if (tidegate_policy_attempt_number() > attempts) return;
  tidegate_policy_attempt_cause_t cause;
  tidegate_policy_attempt_failure(&cause);
  switch (cause.tag) {
    case TIDEGATE_POLICY_ATTEMPT_CAUSE_CONNECT:
    case TIDEGATE_POLICY_ATTEMPT_CAUSE_TLS:
    case TIDEGATE_POLICY_ATTEMPT_CAUSE_REFUSED_STREAM:
    case TIDEGATE_POLICY_ATTEMPT_CAUSE_GO_AWAY:
      verdict->tag = EXPORTS_TIDEGATE_POLICY_RETRY_VERDICT_ELSEWHERE;
      verdict->val.elsewhere = 0;
      break;
    case TIDEGATE_POLICY_ATTEMPT_CAUSE_STATUS:
      if (cause.val.status == 503) {
        verdict->tag = EXPORTS_TIDEGATE_POLICY_RETRY_VERDICT_AGAIN;
        verdict->val.again = pause_ms * UINT64_C(1000000);
      }
      break;
  }
  tidegate_policy_attempt_cause_free(&cause);
}
