//! Waiting for something to become true, with an end.

use std::time::{Duration, Instant};

/// Long enough for a busy machine; nothing measures time by it.
const LONGEST: Duration = Duration::from_secs(30);

/// Asks until the answer is some, and gives it; fails the test when it never is.
pub async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(begun.elapsed() < LONGEST, "it never came to this: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
