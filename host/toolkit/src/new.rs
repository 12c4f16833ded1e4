//! `tidegate plugin new`: a plugin's folder from the templates that are part of the program.
//!
//! A template's file is copied as it is; one whose name ends in `.in` loses that ending, and has its `{{words}}` replaced.

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use include_dir::{Dir, include_dir};

use crate::misuse;
use crate::words::{Language, Question};

/// `sdk/templates`: folders `common`, `cases`, and one per language with a `common` and one per question.
pub(crate) static TEMPLATES: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/../../sdk/templates");
static WIT: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/../../wit");

/// The SDK's version for a plugin that takes it from the registry: it goes with the program's.
const SDK_VERSION: &str = env!("CARGO_PKG_VERSION");

pub(crate) fn write(
    language: Language,
    question: Question,
    sdk: Option<&Path>,
    folder: &Path,
) -> anyhow::Result<ExitCode> {
    let name = folder.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    check_name(name).map_err(misuse)?;
    if sdk.is_some() && language != Language::Rust {
        return Err(misuse(format!("--sdk is for Rust, the SDK's language, not for {language}")));
    }
    let sdk = match sdk {
        None => format!("\"{SDK_VERSION}\""),
        Some(path) => {
            if !path.join("Cargo.toml").is_file() {
                return Err(misuse(format!("--sdk {}: no Cargo.toml is there; name the SDK's folder", path.display())));
            }
            format!("{{ path = {:?} }}", std::path::absolute(path)?.to_string_lossy())
        }
    };
    if fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(misuse(format!("{} is not empty; name a folder that is not there yet", folder.display())));
    }
    let world = question.world();
    // As C's bindings name it.
    let header = format!("{}.h", world.replace('-', "_"));
    let words = [
        ("name", name),
        ("language", language.name()),
        ("question", question.name()),
        ("world", &world),
        ("header", &header),
        ("sdk", &sdk),
        ("limits", limits(language)),
        ("ignored", ignored(language)),
    ];
    let write = |into: &Path, part: &str| -> anyhow::Result<()> {
        let part = TEMPLATES.get_dir(part).with_context(|| format!("there is no template {part}"))?;
        copy(part, into, &words).with_context(|| format!("cannot write {}", folder.display()))
    };
    write(folder, "common")?;
    write(folder, &format!("{language}/common"))?;
    write(folder, &format!("{language}/{question}"))?;
    copy(&WIT, &folder.join("wit"), &words)?;
    // A README among the contract's files would be taken for this plugin's.
    fs::remove_file(folder.join("wit/README.md"))?;
    let cases = TEMPLATES.get_file(format!("cases/{question}.toml")).context("the question has no cases")?;
    fs::write(folder.join("cases.toml"), cases.contents())?;
    println!("{}: a {question} in {language}; its README.md says what it needs", folder.display());
    Ok(ExitCode::SUCCESS)
}

/// A name that every language's tools take for a package.
fn check_name(name: &str) -> Result<(), String> {
    let fits = name.len() <= 64
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !name.ends_with('-');
    if !fits {
        return Err(format!(
            "{name:?} is no name for a plugin: begin with a letter, and use lower-case letters, digits and - only"
        ));
    }
    if RESERVED.contains(&name) {
        return Err(format!("{name:?} is a word of its own in some language; choose another name"));
    }
    Ok(())
}

/// Packages that Cargo refuses, or that hide something a plugin needs.
const RESERVED: [&str; 27] = [
    "abstract",
    "alloc",
    "as",
    "async",
    "await",
    "build",
    "core",
    "crate",
    "else",
    "enum",
    "extern",
    "false",
    "fn",
    "impl",
    "match",
    "mod",
    "proc-macro",
    "pub",
    "self",
    "serde",
    "serde-json",
    "std",
    "super",
    "test",
    "tidegate-sdk",
    "true",
    "type",
];

/// What an instance of each language's engine needs: LANGUAGES.md has the measurements.
fn limits(language: Language) -> &'static str {
    match language {
        Language::Rust | Language::C => "",
        Language::Go => "\n[limits]\ntime = \"20ms\"\nmemory = \"32MiB\"\n",
        Language::JavaScript => "\n[limits]\ntime = \"20ms\"\nmemory = \"64MiB\"\n",
        Language::Python => "\n[limits]\ntime = \"50ms\"\nmemory = \"64MiB\"\n",
    }
}

fn ignored(language: Language) -> &'static str {
    match language {
        Language::Rust => "/target/",
        Language::Go => "/bindings/",
        Language::C => "",
        Language::JavaScript => "/node_modules/",
        Language::Python => "/.venv/\n__pycache__/",
    }
}

/// Writes a template's files below a folder.
pub(crate) fn copy(from: &Dir<'_>, into: &Path, words: &[(&str, &str)]) -> anyhow::Result<()> {
    fs::create_dir_all(into)?;
    for file in from.files() {
        let name = file.path().file_name().and_then(|name| name.to_str()).context("a template's file has no name")?;
        match name.strip_suffix(".in") {
            Some(name) => {
                let name = if name == "gitignore" { ".gitignore" } else { name };
                let text = file.contents_utf8().context("a template with words is not text")?;
                fs::write(into.join(name), fill(text, words))?;
            }
            None => fs::write(into.join(name), file.contents())?,
        }
    }
    for folder in from.dirs() {
        let name = folder.path().file_name().context("a template's folder has no name")?;
        copy(folder, &into.join(name), words)?;
    }
    Ok(())
}

fn fill(text: &str, words: &[(&str, &str)]) -> String {
    let filled =
        words.iter().fold(text.to_owned(), |text, (word, value)| text.replace(&format!("{{{{{word}}}}}"), value));
    // A word without a value leaves an empty line, at the end of a file.
    format!("{}\n", filled.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::project::Project;

    #[test]
    fn every_language_answers_every_question() {
        for language in Language::ALL {
            for question in Question::ALL {
                let parent = tempfile::tempdir().expect("a folder");
                let folder = parent.path().join("my-plugin");
                write(language, question, None, &folder).expect("a template");
                let project = Project::open(&folder).expect("a manifest that reads");
                assert_eq!(project.manifest.world(), question.world());
                assert_eq!((project.manifest.language, project.manifest.question), (language, question));
                crate::cases::read(&folder.join("cases.toml")).expect("cases that read");
                let readme = fs::read_to_string(folder.join("README.md")).expect("a README");
                assert!(readme.contains("my-plugin"), "{readme}");
                assert!(folder.join("wit/worlds.wit").is_file() && folder.join(".gitignore").is_file());
                no_word_is_left(&folder);
            }
        }
    }

    fn no_word_is_left(folder: &Path) {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                no_word_is_left(&path);
            } else {
                let text = fs::read_to_string(&path).expect("text");
                // Languages have braces in pairs of their own; a word begins with a small letter.
                let word = |rest: &str| rest.starts_with(|c: char| c.is_ascii_lowercase());
                assert!(!text.split("{{").skip(1).any(word), "{}: {text}", path.display());
            }
        }
    }

    #[test]
    fn a_folder_in_use_or_a_wrong_name_is_refused() {
        let parent = tempfile::tempdir().expect("a folder");
        fs::write(parent.path().join("note"), "mine").expect("a file");
        let used = parent.path().join("used");
        fs::create_dir(&used).expect("a folder");
        fs::write(used.join("note"), "mine").expect("a file");
        let refused = |name: &str| write(Language::C, Question::Router, None, &parent.path().join(name)).is_err();
        for name in ["used", "Upper", "9lives", "a_b", "a-", "self", "test", "a b", ".."] {
            assert!(refused(name), "{name}");
        }
        assert!(!refused("fine-name2"));
        assert_eq!(fs::read_to_string(used.join("note")).expect("the file"), "mine");
    }

    #[test]
    fn the_sdk_may_be_taken_from_a_folder() {
        let parent = tempfile::tempdir().expect("a folder");
        let folder = parent.path().join("p");
        let sdk = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../sdk");
        write(Language::Rust, Question::Retry, Some(&sdk), &folder).expect("a template");
        let manifest = fs::read_to_string(folder.join("Cargo.toml")).expect("a manifest");
        assert!(manifest.contains("tidegate-sdk = { path = \""), "{manifest}");
        let wrong = write(Language::Rust, Question::Retry, Some(parent.path()), &parent.path().join("q"));
        assert!(wrong.is_err_and(|error| error.is::<crate::Misuse>()));
        assert!(write(Language::Go, Question::Retry, Some(&sdk), &parent.path().join("r")).is_err());
    }
}
