//! `tidegate plugin`: writing one and testing one, where no tool of another language is needed.

use std::path::{Path, PathBuf};

use tidegate_tests::gateway::run;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests is within the repository").to_owned()
}

fn plugin(arguments: &[&str]) -> (i32, String) {
    let output = run(&[&["plugin"], arguments].concat());
    let said = [output.stdout, output.stderr].concat();
    (output.status.code().expect("a code"), String::from_utf8_lossy(&said).into_owned())
}

/// A folder that is whole, in every language, for every question; and nothing is written over.
#[test]
fn new_writes_a_folder_and_spares_what_is_there() {
    let folder = tempfile::tempdir().expect("a folder");
    for language in ["rust", "go", "c", "javascript", "python"] {
        for question in ["router", "balancer", "forwarding", "retry", "tunnel-router"] {
            let place = folder.path().join(format!("{language}-{question}"));
            let name = place.to_string_lossy().into_owned();
            let (code, said) = plugin(&["new", "--lang", language, "--question", question, &name]);
            assert_eq!(code, 0, "{said}");
            for file in ["plugin.toml", "cases.toml", "README.md", ".gitignore", "wit/worlds.wit"] {
                assert!(place.join(file).is_file(), "{language} {question} {file}");
            }
            let (code, said) = plugin(&["new", "--lang", language, &name]);
            assert!(code == 2 && said.contains("is not empty"), "{code} {said}");
        }
    }
    let (code, said) = plugin(&["new", "--lang", "c", "Bad_Name"]);
    assert!(code == 2 && said.contains("\"Bad_Name\" is no name"), "{code} {said}");
    assert_eq!(plugin(&["new", "--lang", "cobol", "a"]).0, 2);
}

/// Cases that hold, one that does not with what differs, and misuse: 0, 1, 2.
#[test]
fn test_tells_what_differs() {
    let component = root().join("plugins/tenant-canary/tenant_canary.wasm");
    let component = component.to_string_lossy();
    let file = root().join("plugins/tenant-canary/cases.toml");
    let (code, said) = plugin(&["test", &component, "--cases", &file.to_string_lossy()]);
    assert!(code == 0 && said.contains("5 of 5 cases hold"), "{code} {said}");

    let folder = tempfile::tempdir().expect("a folder");
    let wrong = folder.path().join("cases.toml");
    let cases = std::fs::read_to_string(&file).expect("the cases");
    std::fs::write(&wrong, cases.replace("forward = \"a-next\"", "forward = \"a-last\"")).expect("a file");
    let (code, said) = plugin(&["test", &component, "--cases", &wrong.to_string_lossy()]);
    assert!(code == 1 && said.contains("4 of 5 cases hold"), "{code} {said}");
    assert!(said.contains("- forward a-last") && said.contains("+ forward a-next"), "{said}");

    let retry = cases.replace("question = \"router\"", "question = \"retry\"");
    std::fs::write(&wrong, retry).expect("a file");
    let (code, said) = plugin(&["test", &component, "--cases", &wrong.to_string_lossy()]);
    assert!(code == 2 && said.contains("is no answer of a retry"), "{code} {said}");
    let (code, said) = plugin(&["test", &component]);
    assert!(code == 2 && said.contains("--cases"), "{code} {said}");
    let (code, said) = plugin(&["test", &folder.path().to_string_lossy()]);
    assert!(code == 2 && said.contains("plugin.toml"), "{code} {said}");
}

#[test]
fn bench_measures_what_its_cases_ask() {
    let place = |file: &str| root().join("plugins/tenant-canary").join(file).to_string_lossy().into_owned();
    let (code, said) = plugin(&["bench", &place("tenant_canary.wasm"), "--cases", &place("cases.toml"), "--json"]);
    assert_eq!(code, 0, "{said}");
    let measured: serde_json::Value = serde_json::from_str(&said).expect("JSON");
    for figure in ["size", "compile_ms", "memory", "decision_ns", "memoised_ns", "fresh_ns"] {
        assert!(measured[figure].as_f64().is_some_and(|figure| figure > 0.0), "{figure}: {said}");
    }
}

/// What a component is and needs, for those of the gateway, others, and what is none. Only the schema is asked of it.
#[test]
fn inspect_tells_what_a_component_is_and_needs() {
    let inspect = |file: &Path| {
        let (code, said) = plugin(&["inspect", "--json", &file.to_string_lossy()]);
        let json: serde_json::Value = serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}"));
        (code, json)
    };
    let canary = root().join("plugins/tenant-canary/tenant_canary.wasm");
    let (code, said) = inspect(&canary);
    assert_eq!((code, &said["questions"], &said["use"]), (0, &serde_json::json!(["route"]), &"plugin".into()));
    assert_eq!(said["size"], std::fs::metadata(&canary).expect("a file").len());
    assert!(
        said["digest"].as_str().is_some_and(|digest| digest.len() == 71 && digest.starts_with("sha256:")),
        "{said}"
    );
    assert_eq!((&said["grants"], &said["problem"]), (&serde_json::json!([]), &serde_json::Value::Null));
    assert!(said["settings_schema"]["properties"]["tenants"].is_object(), "{said}");
    let names = |key: &str| said[key].as_array().expect("a list").len();
    assert!(names("imports") > 2 && names("exports") == 3, "{said}");
    let (code, text) = plugin(&["inspect", &canary.to_string_lossy()]);
    assert!(code == 0 && text.contains("\nanswers   route\n") && text.contains("\ngrants    none\n"), "{text}");

    let built = root().join("tests/guests/built");
    let (code, said) = inspect(&built.join("misbehave_kv.wasm"));
    assert_eq!((code, &said["grants"]), (0, &serde_json::json!(["kv"])), "{said}");
    let (code, said) = inspect(&built.join("caller_router.wasm"));
    assert_eq!((code, &said["grants"]), (0, &serde_json::json!(["http"])), "{said}");
    let (code, said) = inspect(&built.join("edge_function.wasm"));
    assert_eq!((code, &said["use"], &said["problem"]), (0, &"cluster".into(), &serde_json::Value::Null), "{said}");
    let (code, said) = inspect(&built.join("edge_function_sockets.wasm"));
    assert!(code == 1 && said["problem"].as_str().is_some_and(|why| why.contains("wasi:sockets/")), "{said}");

    // What is no component is told as such, and what was not there.
    let (code, said) = plugin(&["inspect", &built.join("tenant_filter.wasm").to_string_lossy()]);
    assert!(code == 1 && said.contains("it is a core module; see `wasm-tools component new`"), "{code} {said}");
    let (code, said) = plugin(&["inspect", &root().join("README.md").to_string_lossy()]);
    assert!(code == 1 && said.contains("it does not begin as one"), "{code} {said}");
    let (code, said) = plugin(&["inspect", "nowhere.wasm"]);
    assert!(code == 1 && said.contains("cannot read nowhere.wasm"), "{code} {said}");
}
