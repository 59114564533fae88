//! The header line `Date` (RFC 9110 section 5.6.7).
//!
//! Owns the form, and one line made at most once a second: what an answer pays is a copy.

use std::io::Write;

use crate::time::Unix;

/// `Date: Mon, 24 Nov 2025 18:40:00 GMT`, and CR LF.
const LINE_BYTES: usize = 37;
/// Last second of the year 9999, beyond which the form has no room.
const SECOND_MAX: u64 = 253_402_300_799;
const SECONDS_A_DAY: u64 = 86_400;

/// The time as answers say it.
#[derive(Clone, Debug)]
pub struct HttpDate {
    second: u64,
    line: [u8; LINE_BYTES],
}

impl HttpDate {
    /// The line of a moment.
    pub fn at(unix: Unix) -> HttpDate {
        let second = (unix.ms() / 1_000).min(SECOND_MAX);
        let line = line(second);
        HttpDate { second, line }
    }

    /// Moves it to another moment; the same second costs a comparison.
    pub fn set(&mut self, unix: Unix) {
        if unix.ms() / 1_000 != self.second {
            *self = HttpDate::at(unix);
        }
    }

    /// The header line, its CR LF included.
    pub fn line(&self) -> &[u8] {
        &self.line
    }
}

fn line(second: u64) -> [u8; LINE_BYTES] {
    const WEEKDAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let (day, rest) = (second / SECONDS_A_DAY, second % SECONDS_A_DAY);
    let (year, month, day_of_month) = civil(day);
    let mut line = [0; LINE_BYTES];
    write!(
        &mut line[..],
        "Date: {}, {day_of_month:02} {} {year:04} {:02}:{:02}:{:02} GMT\r\n",
        WEEKDAYS[(day % 7) as usize],
        MONTHS[month],
        rest / 3_600,
        rest / 60 % 60,
        rest % 60
    )
    .expect("each of its parts has a fixed width");
    line
}

/// Year, month (from 0) and day of the month (from 1) of a day since 1970. Years begin in March
/// here, so that the day that some years have more comes last.
fn civil(day: u64) -> (u64, usize, u64) {
    /// From 0000-03-01 to 1970-01-01.
    const EPOCH: u64 = 719_468;
    const DAYS_OF_400_YEARS: u64 = 146_097;
    let day = day + EPOCH;
    let (era, of_era) = (day / DAYS_OF_400_YEARS, day % DAYS_OF_400_YEARS);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    // Five months from March have 153 days, and so have the next five.
    let month = (5 * of_year + 2) / 153;
    let day_of_month = of_year - (153 * month + 2) / 5 + 1;
    let year = era * 400 + year_of_era + u64::from(month >= 10);
    (year, ((month + 2) % 12) as usize, day_of_month)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(second: u64) -> String {
        let date = HttpDate::at(Unix::from_ms(second * 1_000 + 999));
        String::from_utf8(date.line().to_vec()).unwrap()
    }

    #[test]
    fn known_moments() {
        for (second, expected) in [
            (0, "Thu, 01 Jan 1970 00:00:00"),
            (784_111_777, "Sun, 06 Nov 1994 08:49:37"),
            (951_782_399, "Mon, 28 Feb 2000 23:59:59"),
            (951_782_400, "Tue, 29 Feb 2000 00:00:00"),
            (1_764_009_600, "Mon, 24 Nov 2025 18:40:00"),
            (4_107_542_399, "Sun, 28 Feb 2100 23:59:59"),
            (4_107_542_400, "Mon, 01 Mar 2100 00:00:00"),
            (SECOND_MAX, "Fri, 31 Dec 9999 23:59:59"),
            (SECOND_MAX + 1, "Fri, 31 Dec 9999 23:59:59"),
        ] {
            assert_eq!(text(second), format!("Date: {expected} GMT\r\n"));
        }
    }

    /// Each day follows the day before, by the lengths of months.
    #[test]
    fn days_follow_each_other() {
        let (mut year, mut month, mut day) = (1970, 0, 1);
        for n in 0..200_000 {
            assert_eq!(civil(n), (year, month, day), "day {n}");
            let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
            let length = [
                31,
                28 + u64::from(leap),
                31,
                30,
                31,
                30,
                31,
                31,
                30,
                31,
                30,
                31,
            ][month];
            day += 1;
            if day > length {
                (month, day) = (month + 1, 1);
            }
            if month == 12 {
                (year, month) = (year + 1, 0);
            }
        }
    }

    #[test]
    fn it_moves_with_the_second() {
        let mut date = HttpDate::at(Unix::from_ms(999));
        date.set(Unix::from_ms(1_000));
        assert_eq!(date.line(), HttpDate::at(Unix::from_ms(1_500)).line());
        date.set(Unix::from_ms(500));
        assert_eq!(date.line(), HttpDate::at(Unix::default()).line());
    }
}
