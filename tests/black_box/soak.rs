//! A short run of the soak (`cargo run -p tidegate-tests --bin soak`), so that it stays in order.

use std::time::Duration;

use tidegate_tests::soak::{Options, run};

/// Everything at once for a while, with reloads: what comes is what had to come, and nothing is left behind. Memory is
/// judged in longer runs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_at_once_is_explained_and_leaves_nothing_behind() {
    let report = run(&Options { time: Duration::from_secs(12), seed: 1, clients: 8 }).await;
    println!("{}", report.text);
    assert_eq!(report.unexplained, 0, "{:#?}", report.told);
    assert!(report.total > 100, "{} requests", report.total);
}
