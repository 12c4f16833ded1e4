//! Reading tables: each key by its kind, every mistake noted with its line, reading goes on.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::error::{Errors, nearest, quoted};
use crate::keys::{self, Key, Kind, Table};
use crate::units;

/// The text being read and what was found wrong so far.
pub(crate) struct Source<'a> {
    pub(crate) file: &'a Path,
    /// Where relative names start.
    pub(crate) folder: &'a Path,
    /// Where lines end: every key asks for its own.
    line_ends: Vec<usize>,
    pub(crate) errors: RefCell<Errors>,
}

impl<'a> Source<'a> {
    pub(crate) fn new(text: &str, file: &'a Path) -> Self {
        let ends = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at);
        let folder = file.parent().unwrap_or(Path::new(""));
        Self { file, folder, line_ends: ends.collect(), errors: RefCell::default() }
    }

    pub(crate) fn line(&self, at: usize) -> usize {
        self.line_ends.partition_point(|end| *end < at) + 1
    }

    pub(crate) fn error(&self, line: usize, message: impl Into<String>) {
        self.errors.borrow_mut().push(self.file, line, message);
    }
}

/// One table, read key by key.
pub(crate) struct Section<'a> {
    source: &'a Source<'a>,
    schema: &'static Table,
    table: Option<&'a DeTable<'a>>,
    /// Of its head, or of the key that holds it.
    pub(crate) line: usize,
}

type Found<'a> = Option<(&'a DeValue<'a>, usize)>;

impl<'a> Section<'a> {
    pub(crate) fn root(source: &'a Source<'a>, table: &'a DeTable<'a>) -> Self {
        Self::new(source, "root", Some(table), 1)
    }

    /// Notes unknown keys and missing required ones.
    fn new(source: &'a Source<'a>, schema: &str, table: Option<&'a DeTable<'a>>, line: usize) -> Self {
        let section = Self { source, schema: keys::table(schema), table, line };
        let known = || section.schema.keys.iter().map(|key| key.name);
        for name in table.into_iter().flat_map(DeTable::keys) {
            let text: &str = name.get_ref();
            if !known().any(|known| known == text) {
                let line = source.line(name.span().start);
                source.error(line, format!("{}: unknown key {text:?}{}", section.schema.name, nearest(text, known())));
            }
        }
        if table.is_some() {
            for key in section.schema.keys.iter().filter(|key| key.required) {
                if section.find(key.name).is_none() {
                    source.error(line, format!("{}: {:?} is missing", section.schema.name, key.name));
                }
            }
        }
        section
    }

    pub(crate) fn error(&self, line: usize, message: impl Into<String>) {
        self.source.error(line, message);
    }

    pub(crate) fn table(&self) -> &'static str {
        self.schema.name
    }

    fn key(&self, name: &str) -> &'static Key {
        self.schema.keys.iter().find(|key| key.name == name).expect("the schema has every key that is read")
    }

    fn find(&self, name: &str) -> Found<'a> {
        let value = self.table?.get(name)?;
        Some((value.get_ref(), self.source.line(value.span().start)))
    }

    /// Where a key stands, for errors found later.
    pub(crate) fn line_of(&self, name: &str) -> usize {
        self.find(name).map_or(self.line, |(_, line)| line)
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    fn wrong(&self, name: &str, line: usize, value: &DeValue<'_>, wanted: &str) {
        let shown = match value {
            DeValue::String(text) => format!("{text:?}"),
            DeValue::Integer(number) => number.as_str().to_owned(),
            DeValue::Float(number) => number.as_str().to_owned(),
            DeValue::Boolean(value) => value.to_string(),
            other => format!("a {}", other.type_str()),
        };
        self.error(line, format!("{}: {name} = {shown} is not {wanted}", self.schema.name));
    }

    /// The value as text, or the default's text.
    pub(crate) fn text(&self, name: &str) -> Option<String> {
        match self.find(name) {
            Some((DeValue::String(text), _)) => Some(text.to_string()),
            Some((value, line)) => {
                self.wrong(name, line, value, "a text");
                None
            }
            None => self.key(name).default.map(str::to_owned),
        }
    }

    /// A text that must not be empty; its absence was noted.
    pub(crate) fn name(&self, name: &str) -> String {
        let text = self.text(name).unwrap_or_default();
        if text.is_empty() && self.has(name) {
            self.error(self.line_of(name), format!("{}: {name} is empty", self.schema.name));
        }
        text
    }

    /// A name that is a label of metrics too.
    pub(crate) fn label(&self, name: &str) -> String {
        let text = self.name(name);
        if !text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b)) {
            let message = format!("{}: {name} = {text:?} has more than letters, digits, _ . and -", self.schema.name);
            self.error(self.line_of(name), message);
        }
        text
    }

    /// A text of a type that parses itself.
    pub(crate) fn parsed<T: FromStr>(&self, name: &str, wanted: &str) -> Option<T> {
        let text = self.text(name)?;
        let value = text.parse().ok();
        if value.is_none() {
            self.error(self.line_of(name), format!("{}: {name} = {text:?} is not {wanted}", self.schema.name));
        }
        value
    }

    pub(crate) fn path(&self, name: &str) -> Option<PathBuf> {
        self.text(name).map(|text| self.source.folder.join(text))
    }

    /// A list of files.
    pub(crate) fn paths(&self, name: &str) -> Vec<PathBuf> {
        self.texts(name).into_iter().map(|(text, _)| self.source.folder.join(text)).collect()
    }

    pub(crate) fn bool(&self, name: &str) -> bool {
        match self.find(name) {
            Some((DeValue::Boolean(value), _)) => return *value,
            Some((value, line)) => self.wrong(name, line, value, "true or false"),
            None => {}
        }
        self.key(name).default == Some("true")
    }

    /// A whole number within bounds, both included.
    pub(crate) fn number(&self, name: &str, least: u64, most: u64) -> Option<u64> {
        let default = || self.key(name).default.and_then(|text| text.parse().ok());
        let Some((value, line)) = self.find(name) else { return default() };
        let number = match value {
            DeValue::Integer(number) => u64::from_str_radix(&number.as_str().replace('_', ""), number.radix()).ok(),
            _ => None,
        };
        match number {
            Some(number) if (least..=most).contains(&number) => Some(number),
            _ => {
                self.wrong(name, line, value, &format!("a number from {least} to {most}"));
                default().or(Some(least))
            }
        }
    }

    fn unit<T>(&self, name: &str, parse: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        let default = || self.key(name).default.and_then(|text| parse(text).ok());
        let Some((value, line)) = self.find(name) else { return default() };
        let text = match value {
            DeValue::String(text) => text.to_string(),
            // As TOML means it: underscores, and other bases than ten.
            DeValue::Integer(number) => {
                let plain = number.as_str().replace('_', "");
                u64::from_str_radix(&plain, number.radix()).map_or(plain, |number| number.to_string())
            }
            _ => {
                self.wrong(name, line, value, "a text with a number and a unit");
                return default();
            }
        };
        match parse(&text) {
            Ok(value) => Some(value),
            Err(message) => {
                self.error(line, format!("{}: {name}: {message}", self.schema.name));
                default()
            }
        }
    }

    /// A time that is not zero.
    pub(crate) fn time(&self, name: &str) -> Duration {
        let positive = |text: &str| match units::duration(text)? {
            Duration::ZERO => Err("a time of zero would refuse everything".to_owned()),
            time => Ok(time),
        };
        self.unit(name, positive).unwrap_or(Duration::from_secs(1))
    }

    pub(crate) fn time_or_off(&self, name: &str) -> Option<Duration> {
        let off = self.text(name).is_some_and(|text| text == "off");
        if off { None } else { Some(self.time(name)) }
    }

    pub(crate) fn size(&self, name: &str, least: u64, most: u64) -> u64 {
        let bounded = |text: &str| match units::size(text)? {
            size if (least..=most).contains(&size) => Ok(size),
            _ => Err(format!("{text:?} is not a size from {least} to {most} bytes")),
        };
        self.unit(name, bounded).unwrap_or(least)
    }

    pub(crate) fn size_or_off(&self, name: &str) -> Option<u64> {
        match self.find(name) {
            None => None,
            Some((DeValue::String(text), _)) if text == "off" => None,
            Some(_) => Some(self.size(name, 0, u64::MAX)),
        }
    }

    pub(crate) fn share(&self, name: &str) -> f64 {
        self.unit(name, units::percent).unwrap_or_default()
    }

    /// One of the words its kind lists.
    pub(crate) fn one_of(&self, name: &str) -> String {
        let key = self.key(name);
        let default = || key.default.unwrap_or_default().to_owned();
        let Kind::OneOf(words) = key.kind else { return default() };
        match self.find(name) {
            None => default(),
            Some((DeValue::String(text), _)) if words.contains(&&**text) => text.to_string(),
            Some((DeValue::String(text), line)) => {
                let near = nearest(text, words.iter().copied());
                self.error(
                    line,
                    format!("{}: {name} = {text:?} is not one of {}{near}", self.schema.name, quoted(words)),
                );
                default()
            }
            Some((value, line)) => {
                self.wrong(name, line, value, &format!("one of {}", quoted(words)));
                default()
            }
        }
    }

    /// A list of texts with their lines; a lone text counts as a list of it where the kind allows.
    pub(crate) fn texts(&self, name: &str) -> Vec<(String, usize)> {
        let key = self.key(name);
        match self.find(name) {
            None => {
                let default = key.default.unwrap_or("[]");
                let words = default.trim_matches(['[', ']']).split(',').map(|word| word.trim().trim_matches('"'));
                words.filter(|word| !word.is_empty()).map(|word| (word.to_owned(), self.line)).collect()
            }
            Some((DeValue::String(text), line)) if key.kind == Kind::TextOrList => vec![(text.to_string(), line)],
            Some((DeValue::Array(list), _)) => {
                let mut texts = Vec::with_capacity(list.len());
                for item in list.iter() {
                    let line = self.source.line(item.span().start);
                    match item.get_ref() {
                        DeValue::String(text) => texts.push((text.to_string(), line)),
                        other => self.wrong(name, line, other, "a text"),
                    }
                }
                texts
            }
            Some((value, line)) => {
                self.wrong(name, line, value, "a list of texts");
                Vec::new()
            }
        }
    }

    /// Words from a fixed set.
    pub(crate) fn words(&self, name: &str, known: &[&str]) -> Vec<String> {
        let mut words = Vec::new();
        for (word, line) in self.texts(name) {
            if known.contains(&word.as_str()) {
                words.push(word);
            } else {
                let near = nearest(&word, known.iter().copied());
                self.error(
                    line,
                    format!("{}: {name}: {word:?} is not one of {}{near}", self.schema.name, quoted(known)),
                );
            }
        }
        words
    }

    /// A table of its own; with its defaults where it is absent.
    pub(crate) fn section(&self, name: &str) -> Section<'a> {
        self.optional_section(name).unwrap_or_else(|| {
            let Kind::Table(schema) = self.key(name).kind else { unreachable!("{name} is a table") };
            Section::new(self.source, schema, None, self.line)
        })
    }

    pub(crate) fn optional_section(&self, name: &str) -> Option<Section<'a>> {
        let Kind::Table(schema) = self.key(name).kind else { unreachable!("{name} is a table") };
        match self.find(name)? {
            (DeValue::Table(table), line) => Some(Section::new(self.source, schema, Some(table), line)),
            (value, line) => {
                self.wrong(name, line, value, "a table");
                None
            }
        }
    }

    /// A list of tables.
    pub(crate) fn sections(&self, name: &str) -> Vec<Section<'a>> {
        self.items(name).into_iter().filter_map(Result::ok).collect()
    }

    /// A list of tables, or of texts where the kind allows them.
    pub(crate) fn items(&self, name: &str) -> Vec<Result<Section<'a>, (String, usize)>> {
        let (schema, texts) = match self.key(name).kind {
            Kind::Tables(schema) => (schema, false),
            Kind::TextsOrTables(schema) => (schema, true),
            _ => unreachable!("{name} is a list of tables"),
        };
        let Some((value, line)) = self.find(name) else { return Vec::new() };
        // Absent was noted; an empty list of what must be there is as good as absent. Lists that take texts are of that kind.
        if (self.key(name).required || texts) && matches!(value, DeValue::Array(list) if list.is_empty()) {
            self.error(line, format!("{}: {name} is empty; one at least is needed", self.schema.name));
        }
        let DeValue::Array(list) = value else {
            let hint = if matches!(value, DeValue::Table(_)) {
                "a list of tables; write [[ ]] around its name"
            } else {
                "a list"
            };
            self.wrong(name, line, value, hint);
            return Vec::new();
        };
        let mut items = Vec::with_capacity(list.len());
        for item in list.iter() {
            let line = self.source.line(item.span().start);
            match item.get_ref() {
                DeValue::Table(table) => items.push(Ok(Section::new(self.source, schema, Some(table), line))),
                DeValue::String(text) if texts => items.push(Err((text.to_string(), line))),
                other => self.wrong(name, line, other, "a table"),
            }
        }
        items
    }

    /// A table of texts by free names.
    pub(crate) fn text_map(&self, name: &str) -> Vec<(String, String, usize)> {
        let mut map = Vec::new();
        match self.find(name) {
            None => {}
            Some((DeValue::Table(table), _)) => {
                for (key, value) in table.iter() {
                    let line = self.source.line(key.span().start);
                    match value.get_ref() {
                        DeValue::String(text) => map.push((key.get_ref().to_string(), text.to_string(), line)),
                        other => self.wrong(&format!("{name}.{}", key.get_ref()), line, other, "a text"),
                    }
                }
            }
            Some((value, line)) => self.wrong(name, line, value, "a table"),
        }
        map
    }

    /// Somebody else's table, as JSON.
    pub(crate) fn free(&self, name: &str) -> serde_json::Value {
        match self.find(name) {
            None => serde_json::json!({}),
            Some((value @ DeValue::Table(_), _)) => json(value),
            Some((value, line)) => {
                self.wrong(name, line, value, "a table");
                serde_json::json!({})
            }
        }
    }
}

fn json(value: &DeValue<'_>) -> serde_json::Value {
    use serde_json::Value;
    match value {
        DeValue::String(text) => Value::String(text.to_string()),
        DeValue::Integer(number) => i64::from_str_radix(&number.as_str().replace('_', ""), number.radix())
            .map_or_else(|_| Value::String(number.as_str().to_owned()), Value::from),
        DeValue::Float(number) => {
            let parsed = number.as_str().replace('_', "").parse::<f64>().ok().and_then(serde_json::Number::from_f64);
            parsed.map_or_else(|| Value::String(number.as_str().to_owned()), Value::Number)
        }
        DeValue::Boolean(value) => Value::Bool(*value),
        DeValue::Datetime(time) => Value::String(time.to_string()),
        DeValue::Array(list) => Value::Array(list.iter().map(Spanned::get_ref).map(json).collect()),
        DeValue::Table(table) => {
            Value::Object(table.iter().map(|(key, value)| (key.get_ref().to_string(), json(value.get_ref()))).collect())
        }
    }
}
