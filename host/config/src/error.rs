//! What is wrong with a configuration, all of it, in the order of the file.

use std::fmt;
use std::path::{Path, PathBuf};

/// One mistake. Displays as `edge.toml:14: route "api" names cluster "apis", which is not defined; did you mean "api"?`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ConfigError {
    pub file: PathBuf,
    /// Counted from 1.
    pub line: usize,
    pub message: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file.display(), self.line, self.message)
    }
}

impl std::error::Error for ConfigError {}

/// At least one mistake.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Errors(Vec<ConfigError>);

impl Errors {
    pub fn push(&mut self, file: &Path, line: usize, message: impl Into<String>) {
        self.0.push(ConfigError { file: file.to_owned(), line, message: message.into() });
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = &ConfigError> {
        self.0.iter()
    }

    /// In the order of the file, each once.
    pub(crate) fn sort(&mut self) {
        self.0.sort_by(|a, b| (a.line, &a.message).cmp(&(b.line, &b.message)));
        self.0.dedup();
    }
}

impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(f, "{separator}{error}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Errors {}

/// `; did you mean "x"?` where something is near.
pub(crate) fn nearest<'a>(wanted: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let near = known
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(wanted, name), name))
        .filter(|(distance, name)| *distance <= 2.max(name.len() / 3))
        .min();
    near.map_or_else(String::new, |(_, name)| format!("; did you mean {name:?}?"))
}

pub(crate) fn quoted(names: &[&str]) -> String {
    let names: Vec<String> = names.iter().map(|name| format!("{name:?}")).collect();
    names.join(", ")
}
