//! The whole file.

use std::path::PathBuf;

use crate::cluster::Cluster;
use crate::error::{ConfigError, Errors};
use crate::gateway::Gateway;
use crate::listener::Listener;
use crate::plugin::Plugin;
use crate::route::Route;

/// A configuration that is whole in itself: every name in it is defined. Whether its files can be read and its plugins
/// run is found by the compile step, which reports with [`Config::error_at`].
#[derive(Clone, Debug)]
pub struct Config {
    pub file: PathBuf,
    pub gateway: Gateway,
    pub listeners: Vec<Listener>,
    pub clusters: Vec<Cluster>,
    pub plugins: Vec<Plugin>,
    pub routes: Vec<Route>,
    /// What is allowed and probably not meant.
    pub warnings: Vec<ConfigError>,
}

impl Config {
    /// Adds a mistake at a line of this file.
    pub fn error_at(&self, errors: &mut Errors, line: usize, message: impl Into<String>) {
        errors.push(&self.file, line, message);
    }
}
