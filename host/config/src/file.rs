//! The whole file.

use std::path::{Path, PathBuf};

use crate::cluster::Cluster;
use crate::error::{ConfigError, Errors};
use crate::gateway::Gateway;
use crate::listener::Listener;
use crate::plugin::Plugin;
use crate::registry::Registry;
use crate::route::Route;
use crate::steer::Steer;
use crate::tenant::Tenant;

/// A configuration that is whole in itself: every name in it is defined. Whether its files can be read and its plugins
/// run is found by the compile step, which reports with [`Config::error_at`].
#[derive(Clone, Debug)]
pub struct Config {
    pub file: PathBuf,
    pub gateway: Gateway,
    pub listeners: Vec<Listener>,
    pub clusters: Vec<Cluster>,
    pub steers: Vec<Steer>,
    pub plugins: Vec<Plugin>,
    pub registry: Registry,
    pub tenants: Vec<Tenant>,
    pub routes: Vec<Route>,
    /// What is allowed and probably not meant.
    pub warnings: Vec<ConfigError>,
}

impl Config {
    /// Certificates, keys and roots, of listeners and of clusters.
    pub fn tls_files(&self) -> Vec<&Path> {
        let mut files = Vec::new();
        for tls in self.listeners.iter().filter_map(|listener| listener.tls.as_ref()) {
            files.extend(tls.certificates.iter().flat_map(|pair| [pair.certificate.as_path(), pair.key.as_path()]));
            files.extend(tls.certificates.iter().filter_map(|pair| Some(pair.client.as_ref()?.ca.as_path())));
        }
        for tls in self.clusters.iter().filter_map(|cluster| cluster.tls.as_ref()) {
            files.extend(tls.ca.as_deref());
            files.extend(tls.certificate.iter().flat_map(|(certificate, key)| [certificate.as_path(), key.as_path()]));
        }
        files
    }

    /// Adds a mistake at a line of this file.
    pub fn error_at(&self, errors: &mut Errors, line: usize, message: impl Into<String>) {
        errors.push(&self.file, line, message);
    }
}
