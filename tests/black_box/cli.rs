//! The command line.

use tidegate_tests::gateway::run;

fn check(config: &str) -> (i32, String) {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("edge.toml");
    std::fs::write(&file, config).expect("written");
    let output = run(&["check", &file.to_string_lossy()]);
    let said = [output.stdout, output.stderr].concat();
    (output.status.code().expect("a code"), String::from_utf8_lossy(&said).into_owned())
}

const GOOD: &str = "[[listener]]\nname = \"edge\"\naddress = \"127.0.0.1:0\"\n[[cluster]]\nname = \"api\"\nendpoints = [\"127.0.0.1:9\"]\n[[route]]\nname = \"api\"\ncluster = \"api\"\n";

/// All errors at once, each with file, line, value and the nearest valid one; 2 is the code of a bad configuration.
#[test]
fn check_tells_all_that_is_wrong() {
    let (code, said) = check(GOOD);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("ok: 1 listeners, 1 clusters, 1 routes, 0 plugins"), "{said}");
    let (code, said) =
        check(&GOOD.replace("cluster = \"api\"\n", "cluster = \"apis\"\n").replace("endpoints", "endpoint"));
    assert_eq!(code, 2, "{said}");
    assert!(
        said.contains("edge.toml:9: route \"api\" names cluster \"apis\", which is not defined; did you mean \"api\"?"),
        "{said}"
    );
    assert!(said.contains("unknown key \"endpoint\"; did you mean \"endpoints\"?"), "{said}");
    let plugin = "router = \"p\"\n[[plugin]]\nname = \"p\"\nsource = \"builtin:tenant-canary\"\nsettings = { tenant_from = \"x\", tenants = [] }\n";
    let (code, said) = check(&format!("{GOOD}{plugin}"));
    assert!(code == 2 && said.contains("edge.toml:14: plugin \"p\": its settings are refused: tenant_from"), "{said}");
}

#[test]
fn wrong_usage_is_code_2_and_a_missing_file_is_named() {
    assert_eq!(run(&["run"]).status.code(), Some(2));
    assert_eq!(run(&["fly"]).status.code(), Some(2));
    let output = run(&["check", "missing.toml"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("missing.toml:1: cannot read it"));
    assert_eq!(run(&["reload", "--admin", "127.0.0.1:1"]).status.code(), Some(1));
}

/// What nobody can serve is found by `check`: fields of a response that are the gateway's own, a log filter, plugins that
/// ask for what cannot go together; and all rows are looked at.
#[test]
fn check_finds_what_only_compiling_shows() {
    let respond = "[[route]]\nname = \"r\"\npath = \"/r\"\nrespond = { status = 200, headers = { transfer-encoding = \"chunked\" } }\n\
                   [[route]]\nname = \"s\"\npath = \"/s\"\nrespond = { status = 200, headers = { x_forwarded_for = \"1.1.1.1\", x-fine = \"1\" } }\n";
    let (code, said) = check(&format!("[gateway]\nlog = \"a=b=c\"\n{GOOD}{respond}"));
    assert_eq!(code, 2, "{said}");
    for part in [
        "edge.toml:2: gateway: log = \"a=b=c\"",
        "route \"r\": respond: transfer-encoding",
        "route \"s\": respond: x_forwarded_for",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(!said.contains("x-fine"), "{said}");
    let plugin = "router = \"p\"\n[[plugin]]\nname = \"p\"\nsource = \"builtin:tenant-canary\"\nmemoise = true\ngrants = { wasi = true }\n";
    let (code, said) = check(&format!("{GOOD}{plugin}"));
    assert!(code == 2 && said.contains("exclude one another"), "{said}");
}

/// A reader that has enough is no failure.
#[test]
fn a_closed_pipe_is_no_panic() {
    let mut child = std::process::Command::new(tidegate_tests::gateway::program())
        .arg("reference")
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("the program starts");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// The admin listener is bound before a worker serves: a start that fails has not answered anybody.
#[test]
fn a_taken_admin_port_stops_the_start() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("edge.toml");
    let admin = taken.local_addr().expect("an address");
    std::fs::write(&file, format!("[gateway]\nworkers = 1\nadmin = \"{admin}\"\n{GOOD}")).expect("written");
    let output = run(&["run", "--config", &file.to_string_lossy()]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && said.contains("cannot bind the admin listener"), "{said}");
    assert!(!said.contains("listening"), "{said}");
}

/// The demo drives itself over all three versions of HTTP.
#[test]
fn the_demo_checks_itself() {
    let output = run(&["demo", "--check"]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && said.contains("all is right"), "{said}");
    for part in ["h1 GET", "h2 GET", "h3 GET", "route    tenants", "decide   careful", " ns"] {
        assert!(said.contains(part), "{part}: {said}");
    }
}
