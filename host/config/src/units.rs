//! Values with a unit: `250ms`, `8MiB`, `20%`.

use std::time::Duration;

/// `90s`, `250ms`, `10m`, `1h`, `7d`: a whole or decimal number and its unit.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = split(text);
    let seconds = match unit {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        "d" => 86_400.0,
        _ => return Err(format!("{text:?} is not a time; write a number and us, ms, s, m, h or d, as in \"30s\"")),
    };
    let number: f64 = parse(number).ok_or_else(|| format!("{text:?} is not a time; write it as in \"30s\""))?;
    // A thousand years is a typing error.
    Duration::try_from_secs_f64(number * seconds)
        .ok()
        .filter(|time| time.as_secs() < 30_000_000_000)
        .ok_or_else(|| format!("{text:?} is too long a time"))
}

/// `64KiB`, `8MiB`, `1GiB`, `10kB`, `512B` or a plain number of bytes.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    let (number, unit) = split(text);
    let factor: f64 = match unit {
        "" | "B" => 1.0,
        "KiB" => 1024.0,
        "MiB" => 1024.0 * 1024.0,
        "GiB" => 1024.0 * 1024.0 * 1024.0,
        "kB" => 1e3,
        "MB" => 1e6,
        "GB" => 1e9,
        _ => return Err(format!("{text:?} is not a size; write a number and B, KiB, MiB or GiB, as in \"64KiB\"")),
    };
    let number = parse(number).ok_or_else(|| format!("{text:?} is not a size; write it as in \"64KiB\""))?;
    let bytes = number * factor;
    if bytes > 1e15 { Err(format!("{text:?} is too large a size")) } else { Ok(bytes as u64) }
}

/// `20%` as 0.2.
pub(crate) fn percent(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix('%').map(str::trim_end).and_then(parse);
    number
        .filter(|number| *number <= 1000.0)
        .map(|number| number / 100.0)
        .ok_or_else(|| format!("{text:?} is not a share; write it as in \"20%\""))
}

fn split(text: &str) -> (&str, &str) {
    let at = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    (&text[..at], text[at..].trim_start())
}

fn parse(number: &str) -> Option<f64> {
    number.parse().ok().filter(|number: &f64| number.is_finite() && *number >= 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_sizes_and_shares() {
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("1.5 h"), Ok(Duration::from_secs(5400)));
        assert_eq!(size("64KiB"), Ok(65_536));
        assert_eq!(size("123"), Ok(123));
        assert_eq!(size("1.5 MiB"), Ok(1_572_864));
        assert_eq!(percent("20%"), Ok(0.2));
        for junk in
            ["", "5", "s", "-5s", "5 parsecs", "1e9s", "9999999999999999999999d", "NaNs", ".s", "5ms5", "\u{661}s"]
        {
            assert!(duration(junk).is_err(), "{junk:?}");
        }
        for junk in ["", "KiB", "-1", "5 XiB", "999999999999GiB", "1..2"] {
            assert!(size(junk).is_err(), "{junk:?}");
        }
        for junk in ["", "20", "%", "-1%", "x%", "99999%"] {
            assert!(percent(junk).is_err(), "{junk:?}");
        }
    }
}
