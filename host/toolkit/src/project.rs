//! `plugin.toml`: what a plugin's folder says of itself.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Deserializer};

use crate::misuse;
use crate::words::{Language, Question};

/// The manifest's name in a plugin's folder.
pub(crate) const MANIFEST: &str = "plugin.toml";

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Manifest {
    /// For people: nothing here goes by it.
    #[serde(rename = "name")]
    _name: String,
    pub(crate) language: Language,
    pub(crate) question: Question,
    /// Of `wit/`; the world of the question where it is left out.
    #[serde(default)]
    world: Option<String>,
    /// The component, below the plugin's folder.
    pub(crate) output: PathBuf,
    /// What its tests may use; the gateway's own defaults where left out.
    #[serde(default)]
    pub(crate) limits: LimitSettings,
}

/// What one decision may take: whole numbers with `ns`, `us`, `ms`, `s` or `m`, and with `KiB`, `MiB` or `GiB`. The gateway's
/// configuration takes more forms.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct LimitSettings {
    #[serde(deserialize_with = "duration")]
    pub(crate) time: Duration,
    #[serde(deserialize_with = "size")]
    pub(crate) memory: usize,
}

impl Default for LimitSettings {
    fn default() -> Self {
        Self { time: Duration::from_millis(5), memory: 16 << 20 }
    }
}

impl Manifest {
    pub(crate) fn world(&self) -> String {
        self.world.clone().unwrap_or_else(|| self.question.world())
    }
}

/// A plugin's folder and what its manifest says.
pub(crate) struct Project {
    pub(crate) folder: PathBuf,
    pub(crate) manifest: Manifest,
}

impl Project {
    pub(crate) fn open(folder: &Path) -> anyhow::Result<Self> {
        let file = folder.join(MANIFEST);
        let text = std::fs::read_to_string(&file).map_err(|error| {
            misuse(format!(
                "cannot read {}: {error}; name a plugin's folder, or make one with `tidegate plugin new`",
                file.display()
            ))
        })?;
        let manifest: Manifest = toml::from_str(&text)
            .map_err(|error| misuse(format!("{}: {}", file.display(), error.to_string().trim_end())))?;
        if manifest.output.is_absolute() || manifest.output.components().any(|part| part.as_os_str() == "..") {
            return Err(misuse(format!(
                "{}: output = {:?} leads out of the plugin's folder",
                file.display(),
                manifest.output
            )));
        }
        // Tools run elsewhere than here: every path they get is whole.
        let folder = std::path::absolute(folder)?;
        Ok(Self { folder, manifest })
    }

    pub(crate) fn output(&self) -> PathBuf {
        self.folder.join(&self.manifest.output)
    }

    /// Where a build leaves what nobody keeps.
    pub(crate) fn build_folder(&self) -> PathBuf {
        self.folder.join("build")
    }

    pub(crate) fn wit(&self) -> PathBuf {
        self.folder.join("wit")
    }
}

/// `250us`, `50ms`, `2s`: a whole number with its unit.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let refused = || format!("{text:?} is no duration: write a whole number with ns, us, ms, s or m, like 50ms");
    let number: u64 = number.parse().map_err(|_| refused())?;
    let nanos = match unit {
        "ns" => 1,
        "us" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        _ => return Err(refused()),
    };
    number.checked_mul(nanos).map(Duration::from_nanos).ok_or_else(refused)
}

/// `512KiB`, `16MiB`, `1GiB`.
pub(crate) fn parse_size(text: &str) -> Result<usize, String> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let refused = || format!("{text:?} is no size: write a whole number with KiB, MiB or GiB, like 16MiB");
    let number: usize = number.parse().map_err(|_| refused())?;
    let bytes = match unit {
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err(refused()),
    };
    number.checked_mul(bytes).ok_or_else(refused)
}

pub(crate) fn duration<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    parse_duration(&String::deserialize(from)?).map_err(serde::de::Error::custom)
}

fn size<'de, D: Deserializer<'de>>(from: D) -> Result<usize, D::Error> {
    parse_size(&String::deserialize(from)?).map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes_are_read_with_their_units() {
        assert_eq!(parse_duration("50ms"), Ok(Duration::from_millis(50)));
        assert_eq!(parse_duration("0ns"), Ok(Duration::ZERO));
        assert_eq!(parse_size("64MiB"), Ok(64 << 20));
        for wrong in ["", "5", "ms", "-5ms", "5 ms", "1.5s", "99999999999999999999ns", "18446744073709551615m"] {
            assert!(parse_duration(wrong).is_err(), "{wrong:?}");
        }
        for wrong in ["", "16", "16MB", "MiB", "99999999999999999GiB"] {
            assert!(parse_size(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_manifest_stays_within_its_folder_and_knows_its_keys() {
        let open = |text: &str| {
            let folder = tempfile::tempdir().expect("a folder");
            std::fs::write(folder.path().join(MANIFEST), text).expect("a file");
            Project::open(folder.path()).map(|project| project.manifest.world()).map_err(|error| error.to_string())
        };
        let good = "name = \"a\"\nlanguage = \"javascript\"\nquestion = \"retry\"\noutput = \"a.wasm\"\n";
        assert_eq!(open(good), Ok("retry-plugin".to_owned()));
        let out = good.replace("a.wasm", "../a.wasm");
        assert!(open(&out).is_err_and(|error| error.contains("leads out of")));
        assert!(open(&format!("{good}colour = 1\n")).is_err_and(|error| error.contains("colour")));
        assert!(open(&good.replace("javascript", "cobol")).is_err_and(|error| error.contains("cobol")));
    }
}
