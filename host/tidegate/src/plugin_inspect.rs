//! `tidegate plugin inspect`: what a component is and what it needs, before a configuration names it.

use std::fmt::Write;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use serde_json::{Value, json};
use tidegate_registry::{Component, Reference, Revoked};
use tidegate_wasm::{Import, Inspection, Limits, Need, Runtime, RuntimeOptions};

use crate::cli;
use crate::plugin_shipping::Registry;

#[derive(Args)]
pub(crate) struct Inspect {
    /// The component's file, or oci://... by tag or digest
    #[arg(value_name = "FILE|REFERENCE")]
    source: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    registry: Registry,
}

/// What stating a schema may take: languages that bring an engine start it first.
const LIMITS: Limits = Limits { time: Duration::from_secs(2), memory: 256 << 20 };

impl Inspect {
    /// Exits with 1 where no configuration could use it.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let bytes = self.bytes()?;
        let runtime = Runtime::new(RuntimeOptions { cache: None, max_instances: 1 })?;
        let inspection = runtime.inspect(&bytes.into(), LIMITS).with_context(|| self.source.clone())?;
        if self.json {
            cli::say(&format!("{:#}\n", as_json(&self.source, &inspection)))?;
        } else {
            cli::say(&as_text(&self.source, &inspection))?;
        }
        let problem = Use::of(&inspection).problem(&inspection);
        Ok(if problem.is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }

    fn bytes(&self) -> anyhow::Result<Vec<u8>> {
        if !self.source.starts_with(Reference::SCHEME) {
            return std::fs::read(&self.source).with_context(|| format!("cannot read {}", self.source));
        }
        let reference: Reference = self.source.parse()?;
        let client = self.registry.client()?;
        let revoked = Revoked::default();
        let fetched = async { Ok(Component::fetch(&client, None, &reference, None, &revoked).await?) };
        Ok(self.registry.run(fetched)?.bytes.to_vec())
    }
}

/// What a component is for, and so which imports it can have.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Use {
    /// `[[plugin]]`
    Plugin,
    /// `component` of a `[[cluster]]`
    Cluster,
}

impl Use {
    fn of(inspection: &Inspection) -> Self {
        let answers = inspection.exports.iter().any(|name| name.starts_with("wasi:http/incoming-handler@0.2."));
        if inspection.questions.is_empty() && answers { Self::Cluster } else { Self::Plugin }
    }

    /// The grant an import needs, as a configuration writes it.
    fn grant(self, import: &Import) -> Option<&'static str> {
        match import.need {
            Need::Kv if self == Self::Plugin => Some("kv"),
            Need::Wasi if self == Self::Plugin => Some("wasi"),
            Need::Http if self == Self::Plugin => Some("http"),
            _ => None,
        }
    }

    /// Why no grant helps.
    fn refused(self, import: &Import) -> Option<&'static str> {
        match self {
            Self::Plugin => import.need.refusal().filter(|_| self.grant(import).is_none()),
            Self::Cluster => {
                (!tidegate_edge::offered(&import.name)).then_some("is not offered to a cluster's component")
            }
        }
    }

    fn grants(self, inspection: &Inspection) -> Vec<&'static str> {
        let mut grants: Vec<_> = inspection.imports.iter().filter_map(|import| self.grant(import)).collect();
        grants.sort_unstable();
        grants.dedup();
        grants
    }

    /// Why no configuration could use it.
    fn problem(self, inspection: &Inspection) -> Option<String> {
        match self {
            Self::Plugin => inspection.problem.as_ref().map(ToString::to_string),
            Self::Cluster => inspection.imports.iter().find_map(|import| {
                self.refused(import).map(|why| format!("it imports {:?}, which {why}", import.name))
            }),
        }
    }
}

fn as_json(source: &str, inspection: &Inspection) -> Value {
    let used = Use::of(inspection);
    let import =
        |import: &Import| json!({ "name": import.name, "grant": used.grant(import), "refused": used.refused(import) });
    json!({
        "source": source,
        "size": inspection.size,
        "digest": format!("sha256:{}", inspection.digest),
        "use": match used { Use::Plugin => "plugin", Use::Cluster => "cluster" },
        "questions": inspection.questions,
        "imports": inspection.imports.iter().map(import).collect::<Vec<_>>(),
        "exports": inspection.exports,
        "grants": used.grants(inspection),
        "settings_schema": inspection.schema,
        "problem": used.problem(inspection),
    })
}

fn as_text(source: &str, inspection: &Inspection) -> String {
    let used = Use::of(inspection);
    let mut text = format!("{source}\n");
    let mut row = |what: &str, lines: Vec<String>| {
        let lines = if lines.is_empty() { vec!["none".to_owned()] } else { lines };
        for (index, line) in lines.iter().enumerate() {
            let what = if index == 0 { what } else { "" };
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{what:<10}{line}");
        }
    };
    row("size", vec![format!("{} bytes", inspection.size)]);
    row("digest", vec![format!("sha256:{}", inspection.digest)]);
    row(
        "answers",
        match used {
            Use::Plugin => inspection.questions.iter().map(|question| (*question).to_owned()).collect(),
            Use::Cluster => vec!["requests, as the component of a cluster".to_owned()],
        },
    );
    let import = |import: &Import| match (used.grant(import), used.refused(import)) {
        (Some(grant), _) => format!("{}  (grants.{grant})", import.name),
        (_, Some(why)) => format!("{}  (refused: {why})", import.name),
        _ => import.name.clone(),
    };
    row("imports", inspection.imports.iter().map(import).collect());
    row("exports", inspection.exports.clone());
    row("grants", used.grants(inspection).into_iter().map(str::to_owned).collect());
    if used == Use::Plugin {
        let schema = inspection.schema.as_ref().map(|schema| format!("{schema:#}"));
        let lines = match &schema {
            Some(schema) => schema.lines().map(str::to_owned).collect(),
            None if inspection.problem.is_some() => vec!["not asked for".to_owned()],
            None => vec!["no schema: any are taken".to_owned()],
        };
        row("settings", lines);
    }
    if let Some(problem) = used.problem(inspection) {
        row("problem", vec![problem]);
    }
    text
}
