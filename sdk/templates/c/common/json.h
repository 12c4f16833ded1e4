// Reads JSON (RFC 8259) into a tree, as far as settings need it.
#ifndef JSON_H
#define JSON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// Bytes of UTF-8. Not ended by a zero.
typedef struct text {
  const uint8_t *at;
  size_t len;
} text;

typedef enum json_kind { JSON_NULL, JSON_BOOL, JSON_NUMBER, JSON_TEXT, JSON_LIST, JSON_TABLE } json_kind;

typedef struct json {
  json_kind kind;
  // The name within a table.
  text key;
  // Of a text.
  text text;
  // Of a number.
  double number;
  // Of a boolean.
  bool truth;
  // The members of a list or table, in order.
  struct json *first;
  struct json *next;
} json;

// Null where the text is not JSON. The tree lives as long as the instance, like the settings it is read for.
json *json_parse(text input);

// The member of this name, or null.
json *json_member(const json *table, const char *key);

bool text_is(text value, const char *word);
bool text_same(text one, text other);
bool text_begins(text value, text beginning);
bool text_is_utf8(text value);

// Joins `count` texts in memory of its own.
text text_join(const text *parts, size_t count);
// Of a string constant.
text text_of(const char *word);

#endif
