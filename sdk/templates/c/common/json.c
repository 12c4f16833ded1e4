#include "json.h"

#include <stdlib.h>
#include <string.h>

// As deep as settings may nest: the parser calls itself.
#define DEPTH 32

typedef struct reader {
  const uint8_t *at;
  const uint8_t *end;
  int depth;
} reader;

static void *reserve(size_t size) {
  void *memory = calloc(1, size ? size : 1);
  // Nothing can be answered without memory: the gateway sees a trap and goes on without this plugin.
  if (!memory) __builtin_trap();
  return memory;
}

static void skip_space(reader *in) {
  while (in->at < in->end && (*in->at == ' ' || *in->at == '\t' || *in->at == '\n' || *in->at == '\r')) in->at++;
}

static bool take(reader *in, uint8_t byte) {
  skip_space(in);
  if (in->at == in->end || *in->at != byte) return false;
  in->at++;
  return true;
}

static bool take_word(reader *in, const char *word) {
  size_t len = strlen(word);
  if ((size_t)(in->end - in->at) < len || memcmp(in->at, word, len) != 0) return false;
  in->at += len;
  return true;
}

static bool read_hex(reader *in, uint32_t *code) {
  if (in->end - in->at < 4) return false;
  *code = 0;
  for (int i = 0; i < 4; i++) {
    uint8_t c = *in->at++;
    uint32_t digit = c >= '0' && c <= '9' ? c - '0' : (c | 32) >= 'a' && (c | 32) <= 'f' ? (c | 32) - 'a' + 10 : 16;
    if (digit == 16) return false;
    *code = *code * 16 + digit;
  }
  return true;
}

static uint8_t *write_utf8(uint8_t *out, uint32_t code) {
  if (code < 0x80) {
    *out++ = code;
  } else if (code < 0x800) {
    *out++ = 0xc0 | code >> 6;
    *out++ = 0x80 | (code & 63);
  } else if (code < 0x10000) {
    *out++ = 0xe0 | code >> 12;
    *out++ = 0x80 | (code >> 6 & 63);
    *out++ = 0x80 | (code & 63);
  } else {
    *out++ = 0xf0 | code >> 18;
    *out++ = 0x80 | (code >> 12 & 63);
    *out++ = 0x80 | (code >> 6 & 63);
    *out++ = 0x80 | (code & 63);
  }
  return out;
}

static bool read_escape(reader *in, uint8_t **out) {
  static const char names[] = "\"\\/bfnrt", values[] = "\"\\/\b\f\n\r\t";
  if (in->at == in->end) return false;
  uint8_t c = *in->at++;
  if (c == 'u') {
    uint32_t code, low;
    if (!read_hex(in, &code)) return false;
    if (code >= 0xdc00 && code < 0xe000) return false;
    if (code >= 0xd800 && code < 0xdc00) {
      if (!take_word(in, "\\u") || !read_hex(in, &low) || low < 0xdc00 || low >= 0xe000) return false;
      code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
    }
    *out = write_utf8(*out, code);
    return true;
  }
  const char *found = c ? strchr(names, c) : NULL;
  if (!found) return false;
  *(*out)++ = values[found - names];
  return true;
}

static bool read_text(reader *in, text *value) {
  if (!take(in, '"')) return false;
  // No escape is shorter than what it stands for.
  uint8_t *memory = reserve(in->end - in->at), *out = memory;
  while (in->at < in->end && *in->at != '"') {
    if (*in->at < 0x20) return false;
    if (*in->at != '\\') {
      *out++ = *in->at++;
      continue;
    }
    in->at++;
    if (!read_escape(in, &out)) return false;
  }
  if (in->at == in->end) return false;
  in->at++;
  *value = (text){memory, out - memory};
  return true;
}

static bool read_digits(reader *in, double *number, double *scale) {
  const uint8_t *begun = in->at;
  for (; in->at < in->end && *in->at >= '0' && *in->at <= '9'; in->at++) {
    *number = *number * 10 + (*in->at - '0');
    *scale *= 10;
  }
  return in->at > begun;
}

static bool read_number(reader *in, double *number) {
  double scale = 1, power = 0, unused = 1;
  bool negative = take_word(in, "-");
  const uint8_t *begun = in->at;
  *number = 0;
  if (!read_digits(in, number, &unused) || (*begun == '0' && in->at - begun > 1)) return false;
  if (take_word(in, ".")) {
    scale = 1;
    if (!read_digits(in, number, &scale)) return false;
    *number /= scale;
  }
  if (take_word(in, "e") || take_word(in, "E")) {
    bool smaller = take_word(in, "-");
    if (!smaller) take_word(in, "+");
    if (!read_digits(in, &power, &unused)) return false;
    // Past this a number is zero or infinite already.
    for (int i = 0; i < power && i < 400; i++) *number = smaller ? *number / 10 : *number * 10;
  }
  if (negative) *number = -*number;
  return true;
}

static json *read_value(reader *in);

static bool read_members(reader *in, json *parent, uint8_t end) {
  json **last = &parent->first;
  if (take(in, end)) return true;
  do {
    text key = {0};
    if (parent->kind == JSON_TABLE && (!read_text(in, &key) || !take(in, ':'))) return false;
    json *member = read_value(in);
    if (!member) return false;
    member->key = key;
    *last = member;
    last = &member->next;
  } while (take(in, ','));
  return take(in, end);
}

static json *read_value(reader *in) {
  json *value = reserve(sizeof *value);
  skip_space(in);
  if (in->at == in->end) return NULL;
  bool fine;
  switch (*in->at) {
    case '{':
    case '[':
      value->kind = *in->at == '{' ? JSON_TABLE : JSON_LIST;
      if (in->depth == 0) return NULL;
      in->depth--;
      fine = read_members(in, value, *in->at++ == '{' ? '}' : ']');
      in->depth++;
      return fine ? value : NULL;
    case '"':
      value->kind = JSON_TEXT;
      return read_text(in, &value->text) ? value : NULL;
    case 't':
      value->kind = JSON_BOOL;
      value->truth = true;
      return take_word(in, "true") ? value : NULL;
    case 'f':
      value->kind = JSON_BOOL;
      return take_word(in, "false") ? value : NULL;
    case 'n':
      return take_word(in, "null") ? value : NULL;
    default:
      value->kind = JSON_NUMBER;
      return read_number(in, &value->number) ? value : NULL;
  }
}

json *json_parse(text input) {
  reader in = {input.at, input.at + input.len, DEPTH};
  json *value = read_value(&in);
  skip_space(&in);
  return in.at == in.end ? value : NULL;
}

json *json_member(const json *table, const char *key) {
  json *member = table->first;
  while (member && !text_is(member->key, key)) member = member->next;
  return member;
}

bool text_is(text value, const char *word) { return text_same(value, text_of(word)); }

bool text_same(text one, text other) { return one.len == other.len && memcmp(one.at, other.at, one.len) == 0; }

bool text_begins(text value, text beginning) {
  return value.len >= beginning.len && memcmp(value.at, beginning.at, beginning.len) == 0;
}

bool text_is_utf8(text value) {
  for (size_t i = 0; i < value.len;) {
    uint8_t c = value.at[i++];
    int more = c < 0x80 ? 0 : c >= 0xc2 && c < 0xe0 ? 1 : c >= 0xe0 && c < 0xf0 ? 2 : c >= 0xf0 && c < 0xf5 ? 3 : -1;
    if (more < 0 || value.len - i < (size_t)more) return false;
    // Overlong forms, surrogates, and what is past the last code point show in the second byte.
    uint8_t least = c == 0xe0 ? 0xa0 : c == 0xf0 ? 0x90 : 0x80, most = c == 0xed ? 0x9f : c == 0xf4 ? 0x8f : 0xbf;
    for (; more > 0; more--, i++) {
      if (value.at[i] < least || value.at[i] > most) return false;
      least = 0x80;
      most = 0xbf;
    }
  }
  return true;
}

text text_join(const text *parts, size_t count) {
  size_t len = 0;
  for (size_t i = 0; i < count; i++) len += parts[i].len;
  uint8_t *memory = reserve(len), *out = memory;
  for (size_t i = 0; i < count; i++) {
    if (parts[i].len) memcpy(out, parts[i].at, parts[i].len);
    out += parts[i].len;
  }
  return (text){memory, len};
}

text text_of(const char *word) { return (text){(const uint8_t *)word, strlen(word)}; }
