//! `tidegate plugin test`: a file of cases, facts in and answer out, held against a component in the gateway's own runtime.
//!
//! Every case has a plugin of its own, a clock that stands still, and chance that begins with its seed. What is true of a case
//! is true of it memoised: it is asked again, twice, with `memoise = true`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::misuse;
use crate::project::{LimitSettings, Project};

mod answer;
mod ask;
mod facts;
mod format;

pub(crate) use ask::{Asker, Facts, asked_of};
pub(crate) use format::{Case, CaseFile};

/// Reads a file of cases, and refuses one that says nothing or contradicts itself.
pub(crate) fn read(file: &Path) -> anyhow::Result<CaseFile> {
    let refuse =
        |error: &dyn std::fmt::Display| misuse(format!("{}: {}", file.display(), error.to_string().trim_end()));
    let text = std::fs::read_to_string(file).map_err(|error| refuse(&error))?;
    let cases: CaseFile = toml::from_str(&text).map_err(|error| refuse(&error))?;
    cases.check().map_err(|error| refuse(&error))?;
    Ok(cases)
}

/// A component, the cases it is held against, and what it may use.
pub(crate) struct Subject {
    pub(crate) bytes: Vec<u8>,
    pub(crate) cases: CaseFile,
    pub(crate) limits: LimitSettings,
    /// Where its machine code is kept from one run to the next.
    pub(crate) cache: Option<PathBuf>,
}

impl Subject {
    /// Of a plugin's folder or of a component, as the command line names it.
    pub(crate) fn open(plugin: &Path, cases: Option<&Path>) -> anyhow::Result<Self> {
        let bytes = |file: &Path| {
            std::fs::read(file).map_err(|error| {
                misuse(format!("cannot read {}: {error}; build it with `tidegate plugin build`", file.display()))
            })
        };
        if plugin.is_dir() {
            let project = Project::open(plugin)?;
            let cases = read(cases.unwrap_or(&project.folder.join("cases.toml")))?;
            let limits = cases.limits.unwrap_or(project.manifest.limits);
            let cache = Some(project.build_folder().join("compiled"));
            return Ok(Self { bytes: bytes(&project.output())?, cases, limits, cache });
        }
        let cases = cases.ok_or_else(|| misuse("name the cases of a component with --cases FILE"))?;
        let cases = read(cases)?;
        let limits = cases.limits.unwrap_or_default();
        Ok(Self { bytes: bytes(plugin)?, cases, limits, cache: None })
    }
}

pub(crate) fn test(plugin: &Path, cases: Option<&Path>) -> anyhow::Result<ExitCode> {
    let subject = Subject::open(plugin, cases)?;
    let mut asker = Asker::new(&subject)?;
    let mut wrong = 0;
    for case in &subject.cases.cases {
        match asker.hold(case)? {
            None => println!("ok      {}", case.name),
            Some(difference) => {
                wrong += 1;
                println!("FAILED  {}", case.name);
                difference.lines().for_each(|line| println!("        {line}"));
            }
        }
    }
    let all = subject.cases.cases.len();
    println!("{} of {all} cases hold", all - wrong);
    Ok(if wrong == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
