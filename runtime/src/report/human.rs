//! Numbers as people write them.

/// Bytes in binary units with three significant digits: `0 B`, `999 B`, `1.50 KiB`, `12.3 MiB`.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut unit = "KiB";
    for next in UNITS.iter().skip(1) {
        // What would be shown as 1024 belongs to the next unit.
        if value < 1023.5 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    format!("{} {unit}", three_digits(value))
}

/// A count with thousands separated by commas: `12,345`.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A rate: whole from 100 up (`8,640`), otherwise three digits (`12.3`).
pub fn rate(per_second: f64) -> String {
    if !per_second.is_finite() || per_second < 0.0 {
        return "-".into();
    }
    if per_second >= 99.95 { count(per_second.round() as u64) } else { three_digits(per_second) }
}

/// A time span: `0.82 s`, `12.3 s`, `1 m 12 s`, `2 h 05 m`, `3 d 04 h`.
pub fn seconds(span: f64) -> String {
    if !span.is_finite() || span < 0.0 {
        return "-".into();
    }
    if span < 59.95 {
        return if span < 9.995 { format!("{span:.2} s") } else { format!("{span:.1} s") };
    }
    let whole = span.round() as u64;
    let (minutes, hours, days) = (whole / 60, whole / 3600, whole / 86_400);
    if minutes < 60 {
        format!("{minutes} m {:02} s", whole % 60)
    } else if hours < 48 {
        format!("{hours} h {:02} m", minutes % 60)
    } else {
        format!("{days} d {:02} h", hours % 24)
    }
}

/// A time span to the second, for a countdown: `45s`, `3:07`, `1:02:09`.
pub fn countdown(span: f64) -> String {
    if !span.is_finite() || span < 0.0 {
        return "-".into();
    }
    let whole = span.round() as u64;
    let (hours, minutes, seconds) = (whole / 3600, whole / 60 % 60, whole % 60);
    match (hours, minutes) {
        (0, 0) => format!("{seconds}s"),
        (0, _) => format!("{minutes}:{seconds:02}"),
        _ => format!("{hours}:{minutes:02}:{seconds:02}"),
    }
}

/// A loss: four significant digits, in powers of ten below 0.001.
pub fn loss(value: f64) -> String {
    match value.abs() {
        _ if value.is_nan() => "NaN".into(),
        _ if value.is_infinite() => if value > 0.0 { "inf" } else { "-inf" }.into(),
        0.0 => "0".into(),
        size if !(0.001..1e6).contains(&size) => format!("{value:.3e}"),
        size if size >= 1000.0 => format!("{value:.0}"),
        size if size >= 100.0 => format!("{value:.1}"),
        size if size >= 10.0 => format!("{value:.2}"),
        size if size >= 1.0 => format!("{value:.3}"),
        _ => format!("{value:.4}"),
    }
}

/// A share in per cent: `97.53 %`.
pub fn percent(share: f64) -> String {
    if share.is_finite() { format!("{:.2} %", share * 100.0) } else { "-".into() }
}

fn three_digits(value: f64) -> String {
    match value {
        _ if value < 9.995 => format!("{value:.2}"),
        _ if value < 99.95 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_in_binary_units() {
        for (number, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.00 KiB"),
            (1536, "1.50 KiB"),
            (10 * 1024, "10.0 KiB"),
            (1024 * 1024 - 1, "1.00 MiB"),
            (2_678_824_960, "2.49 GiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(bytes(number), text);
        }
    }

    #[test]
    fn counts_and_rates() {
        for (number, text) in
            [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567"), (100_000, "100,000")]
        {
            assert_eq!(count(number), text);
        }
        assert_eq!(count(u64::MAX), "18,446,744,073,709,551,615");
        for (number, text) in
            [(0.0, "0.00"), (12.34, "12.3"), (99.96, "100"), (8640.4, "8,640"), (f64::NAN, "-"), (-1.0, "-")]
        {
            assert_eq!(rate(number), text);
        }
    }

    #[test]
    fn time_spans() {
        for (span, text) in [
            (0.0, "0.00 s"),
            (9.994, "9.99 s"),
            (9.999, "10.0 s"),
            (59.94, "59.9 s"),
            (59.96, "1 m 00 s"),
            (72.4, "1 m 12 s"),
            (3599.6, "1 h 00 m"),
            (7500.0, "2 h 05 m"),
            (273_600.0, "3 d 04 h"),
            (f64::INFINITY, "-"),
        ] {
            assert_eq!(seconds(span), text);
        }
        for (span, text) in [
            (0.2, "0s"),
            (59.4, "59s"),
            (59.6, "1:00"),
            (187.0, "3:07"),
            (3729.0, "1:02:09"),
            (f64::NAN, "-"),
        ] {
            assert_eq!(countdown(span), text);
        }
    }

    #[test]
    fn losses_and_shares() {
        for (value, text) in [
            (0.0, "0"),
            (2.34567, "2.346"),
            (0.01234, "0.0123"),
            (0.00012, "1.200e-4"),
            (12.345, "12.35"),
            (123_456.7, "123457"),
            (f64::NAN, "NaN"),
            (f64::INFINITY, "inf"),
        ] {
            assert_eq!(loss(value), text);
        }
        assert_eq!(percent(0.97531), "97.53 %");
        assert_eq!(percent(f64::NAN), "-");
    }
}
