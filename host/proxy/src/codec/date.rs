//! The `Date` field's value, made once a second per worker (RFC 9110, section 6.6.1).

use std::cell::RefCell;
use std::time::{Duration, UNIX_EPOCH};

use http::HeaderValue;

use crate::clock;

thread_local! {
    static LAST: RefCell<(u64, HeaderValue)> = const { RefCell::new((0, HeaderValue::from_static(""))) };
}

/// Now, as an IMF-fixdate.
pub(crate) fn value() -> HeaderValue {
    // The coarse clock: a second that begins some milliseconds late.
    let second = clock::unix_seconds();
    LAST.with_borrow_mut(|(at, value)| {
        if *at != second {
            let text = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(second));
            if let Ok(fresh) = HeaderValue::try_from(text) {
                (*at, *value) = (second, fresh);
            }
        }
        value.clone()
    })
}
