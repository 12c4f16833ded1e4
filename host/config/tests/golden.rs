//! Each file in `golden/` is a configuration and, at its end behind `#> `, what loading it says, line by line. A new case
//! is a new file; `TIDEGATE_BLESS=1` writes what is said now, to be read before it is committed.

use std::path::Path;

use proptest::prelude::*;

#[test]
fn every_golden_file_says_what_it_should() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut files: Vec<_> =
        std::fs::read_dir(&folder).expect("the folder").map(|entry| entry.expect("an entry").path()).collect();
    files.sort();
    assert!(files.len() >= 5, "the golden files are gone");
    for file in files {
        let text = std::fs::read_to_string(&file).expect("a golden file");
        let expected: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("#> ")).collect();
        let name = file.file_name().map(Path::new).expect("a name");
        let said: Vec<String> = match tidegate_config::parse(&text, name) {
            Ok(config) => {
                let warnings = config.warnings.iter().map(|warning| format!("warning: {warning}"));
                warnings.chain(["ok".to_owned()]).collect()
            }
            Err(errors) => errors.iter().map(ToString::to_string).collect(),
        };
        if std::env::var_os("TIDEGATE_BLESS").is_some() {
            let kept: String =
                text.lines().filter(|line| !line.starts_with("#> ")).map(|line| format!("{line}\n")).collect();
            let said: String = said.iter().map(|line| format!("#> {line}\n")).collect();
            std::fs::write(&file, kept + &said).expect("written");
            continue;
        }
        assert_eq!(said, expected, "{}", file.display());
    }
}

const WHOLE: &str = include_str!("golden/whole.toml");

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in "\\PC{0,300}") {
        let _ = tidegate_config::parse(&text, Path::new("x.toml"));
    }

    #[test]
    fn no_change_to_a_good_file_makes_it_panic(at in 0..WHOLE.len(), with in "\\PC{0,8}", cut in 0_usize..20) {
        let mut text: Vec<char> = WHOLE.chars().collect();
        let at = at.min(text.len());
        let end = (at + cut).min(text.len());
        text.splice(at..end, with.chars());
        let text: String = text.into_iter().collect();
        let _ = tidegate_config::parse(&text, Path::new("x.toml"));
    }
}

#[test]
fn the_reference_and_the_schema_have_every_table() {
    let reference = tidegate_config::reference();
    for heading in ["## listener\n", "## cluster.tls\n", "## retry_budget\n", "| `max_header_bytes` | size | `64KiB` |"]
    {
        assert!(reference.contains(heading), "{heading}");
    }
    assert_eq!(tidegate_config::json_schema()["properties"]["route"]["items"]["additionalProperties"], false);
}
