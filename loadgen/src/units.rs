//! Units on the command line: durations are `10s`, `2m`, `500ms` or plain seconds; rates are a
//! number a second or `max`.

use std::time::Duration;

/// Reads a duration: `10s`, `2m`, `1h`, `500ms`, or plain seconds.
pub fn duration(text: &str) -> Result<Duration, String> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let seconds = match &text[digits..] {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3_600.0,
        unit => return Err(format!("unknown unit {unit:?}: ms, s, m or h")),
    };
    let number: f64 = text[..digits]
        .parse()
        .map_err(|_| "a number is missing, as in 10s".to_owned())?;
    Duration::try_from_secs_f64(number * seconds).map_err(|e| e.to_string())
}

/// Reads a rate: a number a second above 0, or `max`.
pub fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        _ if text == "max" => Ok(f64::INFINITY),
        Ok(rate) if rate > 0.0 && rate.is_finite() => Ok(rate),
        _ => Err("a number above 0, or max".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_rates() {
        assert_eq!(duration("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(duration("1.5"), Ok(Duration::from_millis(1_500)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert!(duration("s").is_err() && duration("3 days").is_err());
        assert_eq!(rate("max"), Ok(f64::INFINITY));
        assert_eq!(rate("2.5"), Ok(2.5));
        assert!(rate("0").is_err() && rate("inf").is_err() && rate("-1").is_err());
    }
}
