//! The languages a plugin may be written in, and the questions it may answer.

use std::fmt;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// A language with a template and a build.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Language {
    Rust,
    Go,
    C,
    #[value(alias = "js")]
    #[serde(rename = "javascript")]
    #[value(name = "javascript")]
    JavaScript,
    Python,
}

impl Language {
    #[cfg(test)]
    pub(crate) const ALL: [Self; 5] = [Self::Rust, Self::Go, Self::C, Self::JavaScript, Self::Python];

    /// As on the command line and in `plugin.toml`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Rust => "rust",
            Self::Go => "go",
            Self::C => "c",
            Self::JavaScript => "javascript",
            Self::Python => "python",
        }
    }
}

impl fmt::Display for Language {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A question of the contract, by the interface that answers it.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Question {
    Router,
    Balancer,
    Forwarding,
    Retry,
    TunnelRouter,
}

impl Question {
    pub(crate) const ALL: [Self; 5] = [Self::Router, Self::Balancer, Self::Forwarding, Self::Retry, Self::TunnelRouter];

    /// The interface's name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Router => "router",
            Self::Balancer => "balancer",
            Self::Forwarding => "forwarding",
            Self::Retry => "retry",
            Self::TunnelRouter => "tunnel-router",
        }
    }

    /// The world of `wit/worlds.wit` that answers it and no other.
    pub(crate) fn world(self) -> String {
        format!("{}-plugin", self.name())
    }
}

impl fmt::Display for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
